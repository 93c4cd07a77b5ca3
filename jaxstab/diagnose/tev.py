"""`main.py tev FILE...`: token embedding variability of checkpoints, reading no more than their embeddings.

TEV_i = √(mean_j (E_ij - mean_j E_ij)²) of every row of E [V, d], μ_TEV its mean and σ_TEV its standard deviation over
the rows (Chung et al. 2024, Figure 1); the means of the rows are Figure 4.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxstab.config import UserError, from_flat
from jaxstab.diagnose.figures import canvas, svg_of
from jaxstab.diagnose.page import document, table

ROWS_AT_ONCE = 4096
BLOCKS = "▁▂▃▄▅▆▇█"
# What others call the two matrices, both [V, d] in Hugging Face's files.
NAMES = {
    "embed_tokens": r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|token_embedding|shared)\.weight$",
    "lm_head": r"(^|\.)(lm_head|embed_out)\.weight$|^output\.weight$",
}
COLUMNS = ("file", "matrix", "rows", "width", "mu_TEV", "sigma_TEV", "5%", "median", "95%", "row means", "their std")


@dataclasses.dataclass(frozen=True)
class Variability:
    """TEV of one matrix.

    Attributes:
      file, matrix: where it is, and its role or name there.
      width: d.
      stds, means: of every row, float64[V].
    """

    file: str
    matrix: str
    width: int
    stds: Float[np.ndarray, " V"]
    means: Float[np.ndarray, " V"]

    @property
    def cells(self) -> tuple[str, ...]:
        """The values that COLUMNS name."""
        numbers = (self.stds.mean(), self.stds.std(), *np.quantile(self.stds, (0.05, 0.5, 0.95)))
        numbers = (*numbers, self.means.mean(), self.means.std())
        return (
            self.file,
            self.matrix,
            f"{len(self.stds):,}",
            str(self.width),
            *(f"{number:.4g}" for number in numbers),
        )


def variability(file: str, matrix: str, rows_Vd: Float[np.ndarray, "V d"]) -> Variability:
    """TEV of a matrix with one row per token, of any float dtype, in float64."""
    parts = [rows_Vd[i : i + ROWS_AT_ONCE].astype(np.float64) for i in range(0, len(rows_Vd), ROWS_AT_ONCE)]
    stds = np.concatenate([part.std(axis=1) for part in parts])
    means = np.concatenate([part.mean(axis=1) for part in parts])
    if not np.isfinite(stds).all():
        raise UserError(f"{matrix} of {file} has entries that are not finite in {(~np.isfinite(stds)).sum():,} rows")
    return Variability(file, matrix, rows_Vd.shape[1], stds, means)


def tev(files: Sequence[str], out: str | None = None) -> list[Variability]:
    """Prints TEV of files as a table, and draws its distributions into `out`, a page (.html) or a figure (.svg).

    Args:
      files: workdirs and checkpoints of ours, safetensors files, the index of a sharded one, or directories with one.
      out: where to draw; None draws nothing.

    Raises:
      UserError: no file is given, one isn't there or has no embedding, or `out` can't be written.
    """
    if not files:
        raise UserError("tev takes files: for instance python main.py tev runs/first model.safetensors")
    if out and Path(out).suffix not in (".html", ".svg"):
        raise UserError(f"--out={out} is neither a .html nor a .svg")
    matrices = [each for file in files for each in read(file)]
    lines = [(*COLUMNS, "distribution of TEV"), *((*each.cells, _sketch(each.stds)) for each in matrices)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if out:
        svg = drawn(matrices)
        body = table(COLUMNS, [each.cells for each in matrices]) + svg
        page = document("Token embedding variability", "As Figures 1 and 4 of Chung et al. 2024.", [("TEV", body)])
        try:
            Path(out).write_text(svg if out.endswith(".svg") else page)
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
        steps = sorted(int(each.name) for each in (path / "checkpoints").iterdir() if each.name.isdigit())
        if not steps:
            raise UserError(f"{path} has no checkpoint yet")
        return _of_checkpoint(path / "checkpoints" / str(steps[-1]))
    if path.is_dir() and (path / "state").is_dir():
        return _of_checkpoint(path)
    if path.is_dir():
        inside = [path / "model.safetensors.index.json", path / "model.safetensors"]
        given = next((each for each in inside if each.is_file()), None)
        if given is None:
            raise UserError(f"{path} is neither a workdir nor a checkpoint, and has no model.safetensors")
        path = given
    return _of_index(path) if path.suffix == ".json" else _of_safetensors(path)


def _of_safetensors(path: Path, wanted: Sequence[str] = tuple(NAMES)) -> Iterator[tuple[str, np.ndarray]]:
    with _opened(path) as file:
        names = _chosen(list(file.keys()), wanted)
        if "embed_tokens" in wanted and "embed_tokens" not in names:
            shown = ", ".join(sorted(file.keys())[:4])
            raise UserError(f"{path} has no token embedding among its tensors: {shown}, ...")
        for role, name in names.items():
            shape = file.get_slice(name).get_shape()
            if len(shape) != 2:
                raise UserError(f"{name} of {path} is of shape {shape}, not [tokens, width]")
            yield name if name != f"{role}.weight" else role, file.get_tensor(name)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a safetensors file: {str(error).splitlines()[0]}") from error


def _chosen(names: list[str], wanted: Sequence[str]) -> dict[str, str]:
    chosen = {}
    for role in wanted:
        matching = sorted((name for name in names if re.search(NAMES[role], name)), key=lambda name: (len(name), name))
        if matching:
            chosen[role] = matching[0]
    return chosen


def _of_index(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        shards = json.loads(path.read_text())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not an index of safetensors files: it has no weight_map") from error
    chosen = _chosen(list(shards), tuple(NAMES))
    if "embed_tokens" not in chosen:
        raise UserError(f"{path} has no token embedding among its tensors: {', '.join(sorted(shards)[:4])}, ...")
    for role, name in chosen.items():
        yield from _of_safetensors(path.with_name(shards[name]), (role,))


def _of_checkpoint(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The effective matrices: gates and constant factors are those of the config that was saved with them."""
    import jax
    import orbax.checkpoint as ocp

    from jaxstab.reparam import reparameterize
    from jaxstab.train.config import Config
    from jaxstab.train.setup import reparameterized

    path = path.absolute()
    try:
        record = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path / "record")
        config = from_flat(Config, record["meta"]["config"])
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{path} has no record that can be read: {str(error).splitlines()[0][:200]}") from error
    whole, methods, _ = reparameterized(config)
    part: Any = {name: whole[name] for name in ("embed_tokens", "lm_head")}
    reparam = reparameterize(part, *methods)
    weights = jax.tree.map(lambda row: jax.ShapeDtypeStruct(row.shape, "float32"), part)
    raw, state = jax.eval_shape(reparam.init, weights, jax.random.key(0))
    wanted = {"raw": raw, "reparam": list(state)}
    try:
        restored = ocp.PyTreeCheckpointer().restore(
            path / "state",
            args=ocp.args.PyTreeRestore(
                wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
            ),
        )
    except Exception as error:  # a damaged checkpoint shows itself in many ways
        raise UserError(f"the embedding of {path} can't be read: {str(error).splitlines()[0][:200]}") from error
    effective = reparam.merge(restored["raw"], tuple(restored["reparam"]))
    yield "embed_tokens", np.asarray(jax.tree.leaves(effective["embed_tokens"])[0])
    yield "lm_head", np.asarray(jax.tree.leaves(effective["lm_head"])[0]).T


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
