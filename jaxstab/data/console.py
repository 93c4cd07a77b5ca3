"""Where the data room says what it does: the standard error, since commands print results on the other."""

from rich.console import Console

console = Console(stderr=True, highlight=False)
