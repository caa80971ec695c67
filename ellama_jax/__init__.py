"""Continual pretraining of Llama 3.1 for a domain, on JAX and TPU."""

__version__ = "0.1.0"
