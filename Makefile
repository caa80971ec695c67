# `make demo` and `make test` set everything up by themselves: Python 3.11-3.13 and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_DIR ?= demo
# torch is only a reference that tests compare with. Its CPU build is taken where pip finds one.
# The TPU compiler, for the tests of what must fit; of the version that the locked jax asks for.
LIBTPU := libtpu==0.0.42.1
# Tests of gs:// paths run against a fake bucket; what it needs is installed where pip finds it.
TORCH := torch==2.13.0+cpu

EVIDENCE_DIR ?= evidence

.PHONY: demo evidence test lock lint api clean

demo: $(VENV)/installed
	$(BIN)/ellama demo --workdir $(DEMO_DIR)

# Some hours on 2 cores; the same command goes on where it was broken off.
evidence: $(VENV)/installed
	$(BIN)/ellama evidence --config configs/evidence.py --workdir $(EVIDENCE_DIR) --write docs/RESULTS.md

test: $(VENV)/installed $(VENV)/references
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

$(VENV)/installed: requirements.lock setup.py
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python must be 3.11 to 3.13, got {v[0]}.{v[1]}; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing about 205 pinned packages into $(VENV): some minutes, about 1 GB to download"
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/references: $(VENV)/installed tools/bucket-tests.txt tools/dask-tests.txt tools/notebook-tests.txt tools/launch-tests.txt
	$(BIN)/python -m pip install --quiet --no-deps '$(TORCH)' || \
	  echo "no CPU build of torch for this Python: tests that compare with it will be skipped"
	$(BIN)/python -m pip install --quiet --no-deps --requirement tools/bucket-tests.txt || \
	  echo "no fake bucket for this Python: tests with one will be skipped"
	$(BIN)/python -m pip install --quiet --no-deps --requirement tools/dask-tests.txt || \
	  echo "no Dask for this Python: tests on a cluster will be skipped"
	$(BIN)/python -m pip install --quiet --no-deps --requirement tools/notebook-tests.txt || \
	  echo "nothing to run notebooks with for this Python: their tests will be skipped"
	$(BIN)/python -m pip install --quiet --no-deps --requirement tools/launch-tests.txt || \
	  echo "no xpk or shellcheck for this Python: tests of TPU launches with them will be skipped"
	$(BIN)/python -m pip install --quiet --no-deps '$(LIBTPU)' || \
	  echo "no libtpu for this Python: tests that compile for TPUs will be skipped"
	touch $@

lock:
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-annotate --generate-hashes --quiet \
	  --override tools/lock-overrides.txt --extra dev --output-file requirements.lock setup.py \
	  tools/lock-extra.txt

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The API pages, from the docstrings: build/api/index.html.
api: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-deps --requirement tools/api-pages.txt
	JAX_PLATFORMS=cpu $(BIN)/python -W ignore -m pdoc -d google -o build/api ellama_jax
	@echo "wrote build/api/index.html"

clean:
	rm -rf $(VENV) $(DEMO_DIR) build/api
