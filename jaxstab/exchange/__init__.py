"""Models to and from others: Hugging Face's classes, llama2.c's files."""

from jaxstab.exchange.importing import find, import_model

__all__ = ["find", "import_model"]
