"""Pictures of a measurement: the layers of a model by the roles of its matrices, or by its attention heads."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np

DPI = 80
LEFT, RIGHT, BOTTOM, TOP = 0.55, 1.2, 0.85, 0.15  # margins in inches; the scale of colors is in the right one
COLUMN, ROW = 0.45, 0.16


def draw_heat_map(by_role: Mapping[str, np.ndarray]) -> tuple[bytes, int, int]:
    """Draws a measurement as colors on a logarithmic scale: layers from top to bottom, roles from left to right.

    Args:
      by_role: vectors over layers, `[layers]`, by role or head. Values that are not positive and finite stay gray.

    Returns:
      A PNG file, its width and its height in pixels.
    """
    from matplotlib.colors import LogNorm  # here, since importing matplotlib takes as long as a program's other imports
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = sorted(by_role, key=lambda role: (len(role), role))  # head 2 before head 10, q_proj before down_proj
    values = np.stack([by_role[name] for name in names], axis=1).astype(np.float64)
    drawable = np.isfinite(values) & (values > 0)
    shown = np.ma.masked_array(values, ~drawable)
    low, high = (shown.min(), shown.max()) if drawable.any() else (1.0, 10.0)

    layers, roles = values.shape
    plot_width, plot_height = min(max(COLUMN * roles, 1), 9), ROW * max(layers, 12)
    width, height = LEFT + plot_width + RIGHT, BOTTOM + plot_height + TOP
    bottom, plot_height = BOTTOM / height, plot_height / height
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((LEFT / width, bottom, plot_width / width, plot_height), facecolor="lightgray")
    image = axes.imshow(shown, norm=LogNorm(low, max(high, low * 1.01)), aspect="auto", interpolation="nearest")
    figure.colorbar(image, cax=figure.add_axes(((LEFT + plot_width + 0.15) / width, bottom, 0.2 / width, plot_height)))
    axes.set_xticks(range(roles), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("layer")

    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue(), *figure.canvas.get_width_height()
