"""Models to and from others: Hugging Face's classes, llama2.c's files."""

from jaxstab.exchange.exporting import export
from jaxstab.exchange.importing import check_model, find, import_model, recipe_of, undrawn

__all__ = ["check_model", "export", "find", "import_model", "recipe_of", "undrawn"]
