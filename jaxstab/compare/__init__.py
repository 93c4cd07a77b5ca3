"""Methods beside each other on a config of the user's: a grid of runs, what each came to, and the report."""

from jaxstab.compare.grid import Cell, Grid, read_grid
from jaxstab.compare.orderings import Published
from jaxstab.compare.running import compare

__all__ = ["Cell", "Grid", "Published", "compare", "read_grid"]
