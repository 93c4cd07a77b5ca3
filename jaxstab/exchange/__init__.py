"""Models to and from others: Hugging Face's classes, llama2.c's files."""

from jaxstab.exchange.exporting import export
from jaxstab.exchange.importing import find, import_model

__all__ = ["export", "find", "import_model"]
