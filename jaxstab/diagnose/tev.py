"""`main.py tev FILE...`: token embedding variability of checkpoints, reading no more than their embeddings.

TEV_i = √(mean_j (E_ij - mean_j E_ij)²) of every row of E [V, d], μ_TEV its mean and σ_TEV its standard deviation over
the rows (Chung et al. 2024, Figure 1); the means of the rows are Figure 4.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxstab import durable, scale
from jaxstab.config import UserError
from jaxstab.diagnose.figures import canvas, svg_of
from jaxstab.diagnose.page import document, table
from jaxstab.exchange.folder import INDEX, SINGLE, index_tensors
from jaxstab.exchange.llama2c import llama
from jaxstab.exchange.tensors import Tensor, tensors
from jaxstab.train.trained import checkpoint_of, config_of, read_record, read_weights

ROWS_AT_ONCE = 4096
BLOCKS = "▁▂▃▄▅▆▇█"
# What others call the two matrices, both [V, d] in Hugging Face's files.
NAMES = {
    "embed_tokens": r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|token_embedding|shared)\.weight$",
    "lm_head": r"(^|\.)(lm_head|embed_out)\.weight$|^output\.weight$",
}
COLUMNS = ("file", "matrix", "rows", "width", "mu_TEV", "sigma_TEV", "5%", "median", "95%", "row means", "their std")
CENTRED = ("|row mean|", "|mean row|")  # the mean size of a row's mean, and the norm of the mean of all rows
QUANTIZED = ("_scale", "_scale_inv")  # ends of the names of scales beside a tensor


@dataclasses.dataclass(frozen=True)
class Variability:
    """TEV of one matrix.

    Attributes:
      file, matrix: where it is, and its role or name there.
      width: d.
      stds, means: of every row, float64[V].
      mean_row: the mean of all rows, float64[d], which output centring removes.
    """

    file: str
    matrix: str
    width: int
    stds: Float[np.ndarray, " V"]
    means: Float[np.ndarray, " V"]
    mean_row: Float[np.ndarray, " d"]

    @property
    def cells(self) -> tuple[str, ...]:
        """The values that COLUMNS and CENTRED name."""
        numbers = (self.stds.mean(), self.stds.std(), *np.quantile(self.stds, (0.05, 0.5, 0.95)))
        numbers = (*numbers, self.means.mean(), self.means.std())
        numbers = (*numbers, np.abs(self.means).mean(), np.linalg.norm(self.mean_row))
        return (
            self.file,
            self.matrix,
            f"{len(self.stds):,}",
            str(self.width),
            *(f"{number:.4g}" for number in numbers),
        )


def variability(file: str, matrix: str, rows_Vd: Float[np.ndarray, "V d"]) -> Variability:
    """TEV of a matrix with one row per token, of any float dtype, in float64."""
    stds, means, sum_d = np.empty(len(rows_Vd)), np.empty(len(rows_Vd)), np.zeros(rows_Vd.shape[1])
    for start in range(0, len(rows_Vd), ROWS_AT_ONCE):
        part, rows = rows_Vd[start : start + ROWS_AT_ONCE].astype(np.float64), slice(start, start + ROWS_AT_ONCE)
        stds[rows], means[rows] = part.std(axis=1), part.mean(axis=1)
        sum_d += part.sum(axis=0)
    if not np.isfinite(stds).all():
        raise UserError(f"{matrix} of {file} has entries that are not finite in {(~np.isfinite(stds)).sum():,} rows")
    return Variability(file, matrix, rows_Vd.shape[1], stds, means, sum_d / max(1, len(rows_Vd)))


def tev(files: Sequence[str], out: str | None = None) -> list[Variability]:
    """Prints TEV of files as a table, and draws its distributions into `out`, a page (.html) or a figure (.svg).

    Args:
      files: workdirs and checkpoints of ours, safetensors files, the index of a sharded one, directories with one, and
        files of llama2.c.
      out: where to draw; None draws nothing.

    Raises:
      UserError: no file is given, one isn't there or has no embedding, or `out` can't be written.
    """
    if not files:
        raise UserError("tev takes files: for instance python main.py tev runs/first model.safetensors")
    if out and Path(out).suffix not in (".html", ".svg"):
        raise UserError(f"--out={out} is neither a .html nor a .svg")
    matrices = [each for file in files for each in read(file)]
    lines = [(*COLUMNS, *CENTRED, "distribution of TEV"), *((*each.cells, _sketch(each.stds)) for each in matrices)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if out:
        svg = drawn(matrices)
        body = table((*COLUMNS, *CENTRED), [each.cells for each in matrices]) + svg
        page = document("Token embedding variability", "As Figures 1 and 4 of Chung et al. 2024.", [("TEV", body)])
        try:
            durable.write(Path(out), svg if out.endswith(".svg") else page)
        except OSError as error:
            raise UserError(f"--out={out} can't be written: {error.strerror}") from error
        print(f"\nDrawn in {out}")
    return matrices


def read(file: str) -> Iterator[Variability]:
    """TEV of the embedding of a file, and of its head where it has one."""
    path = Path(file)
    if not path.exists():
        raise UserError(f"there is no file {file}")
    for matrix, rows_Vd in _matrices(path):
        yield variability(file, matrix, rows_Vd)


def _matrices(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    if path.is_dir() and (path / "checkpoints").is_dir():
        return _of_checkpoint(checkpoint_of(path))
    if path.is_dir() and (path / "state").is_dir():
        return _of_checkpoint(path.absolute())
    if path.is_dir():
        inside = [path / INDEX, path / SINGLE]
        given = next((each for each in inside if each.is_file()), None)
        if given is None:
            raise UserError(f"{path} is neither a workdir nor a checkpoint, and has no {SINGLE}")
        path = given
    if path.suffix == ".json":
        return _of_tensors(path, index_tensors(path, _chosen))
    return _of_tensors(path, llama(path)[1] if path.suffix == ".bin" else tensors(path))


def _of_tensors(path: Path, found: Mapping[str, Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    chosen = _chosen(list(found))
    if "embed_tokens" not in chosen:
        raise UserError(f"{path} has no token embedding among its tensors: {', '.join(sorted(found)[:4])}, ...")
    for role, name in chosen.items():
        tensor = found[name]
        if len(tensor.shape) != 2:
            raise UserError(f"{name} of {tensor.path} is of shape {list(tensor.shape)}, not [tokens, width]")
        scale = next((f"{name}{end}" for end in QUANTIZED if f"{name}{end}" in found), None)
        if scale:
            raise UserError(f"{name} of {tensor.path} is quantized: it means something only times {scale}")
        yield name if name != f"{role}.weight" else role, tensor.array()


def _chosen(names: Sequence[str]) -> dict[str, str]:
    """The tensors of the two matrices, by role."""
    chosen = {}
    for role, pattern in NAMES.items():
        matching = sorted((name for name in names if re.search(pattern, name)), key=lambda name: (len(name), name))
        if matching:
            chosen[role] = matching[0]
    return chosen


def _of_checkpoint(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The effective matrices: gates and constant factors are those of the config that was saved with them."""
    record = read_record(path)
    mesh = scale.make_mesh(scale.MeshConfig(fsdp=-1))
    weights: Any = read_weights(path, record, config_of(path, record), mesh, tuple(NAMES))
    yield "embed_tokens", np.asarray(weights["embed_tokens"]["embedding"])
    yield "lm_head", np.asarray(weights["lm_head"]["kernel"]).T


def _sketch(values: np.ndarray, bins: int = 24) -> str:
    """A histogram in one line."""
    counts, edges = np.histogram(values, bins)
    bars = "".join(BLOCKS[int(np.ceil(count / counts.max() * (len(BLOCKS) - 1)))] for count in counts)
    return f"{edges[0]:.3g} {bars} {edges[-1]:.3g}"


def drawn(matrices: Sequence[Variability]) -> str:
    """Distributions of TEV (Figure 1 of Chung et al. 2024) and of the rows' means (Figure 4), as SVG."""
    with canvas() as figure:
        left, right = figure.subplots(1, 2)
        for each in matrices:
            label = f"{Path(each.file).name}, {each.matrix}"
            left.hist(each.stds, 80, density=True, histtype="step", label=label)
            right.hist(each.means, 80, density=True, histtype="step", label=label)
        left.set(xlabel="TEV (standard deviation of a row)", ylabel="density")
        right.set(xlabel="mean of a row")
        right.axvline(0, color="0.6", linewidth=0.7, linestyle=":")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return svg_of(figure)
