"""Pictures of a measurement: the layers of a model by the roles of its matrices."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np

DPI = 80


def draw_heat_map(by_role: Mapping[str, np.ndarray]) -> tuple[bytes, int, int]:
    """Draws a measurement as colors on a logarithmic scale, layers from top to bottom, roles from left to right.

    Args:
      by_role: vectors over layers, `[layers]`, by role. Values that are not positive and finite stay gray.

    Returns:
      A PNG file, its width and its height in pixels.
    """
    from matplotlib.colors import LogNorm  # here, since importing matplotlib takes as long as a program's other imports
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    values = np.stack(list(by_role.values()), axis=1).astype(np.float64)
    drawable = np.isfinite(values) & (values > 0)
    shown = np.ma.masked_array(values, ~drawable)
    low, high = (shown.min(), shown.max()) if drawable.any() else (1.0, 10.0)
    layers, roles = values.shape
    figure = Figure(figsize=(2.2 + 0.6 * roles, 1.4 + 0.16 * max(layers, 12)), dpi=DPI)
    figure.subplots_adjust(left=0.6 / figure.get_figwidth(), right=1, bottom=0.9 / figure.get_figheight(), top=0.98)
    axes = figure.add_subplot(facecolor="lightgray")
    image = axes.imshow(shown, norm=LogNorm(low, high if high > low else low * 1.1), aspect="auto")
    figure.colorbar(image, ax=axes)
    axes.set_xticks(range(roles), list(by_role), rotation=45, ha="right", rotation_mode="anchor")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("layer")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    width, height = figure.canvas.get_width_height()
    return png.getvalue(), width, height
