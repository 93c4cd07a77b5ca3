"""A trained model: the weights of a checkpoint, with the config and the tokenizer that they were trained with."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from jaxstab import data, scale
from jaxstab.config import UserError, from_flat
from jaxstab.evaluate import LanguageModel
from jaxstab.model.transformer import Transformer
from jaxstab.reparam import reparameterize
from jaxstab.table import Row, Weights
from jaxstab.train.checkpoint import reason
from jaxstab.train.config import Config
from jaxstab.train.digests import digests, leaves_by_path
from jaxstab.train.record import sealed
from jaxstab.train.setup import attention_kernel, reparameterized


@dataclasses.dataclass(frozen=True)
class Trained(LanguageModel):
    """A trained model, on this machine's devices, whatever it was trained on.

    Attributes:
      config: of its run.
      step: of the checkpoint.
    """

    config: Config
    step: int


def load(workdir: str | Path, step: int | None = None) -> Trained:
    """Reads the weights of a run's checkpoint, and nothing else of it; the run may be at work.

    Args:
      workdir: of a run.
      step: of the checkpoint; None takes the newest.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or the tokenizer isn't there or isn't that of the run.
    """
    path = checkpoint_of(Path(workdir), step)
    record = read_record(path)
    config = config_of(path, record)
    tokenizer = data.load_tokenizer(config.data.tokenizer, config.data.end_token)
    if tokenizer.digest != record["meta"]["tokenizer_digest"]:
        raise UserError(f"data.tokenizer={config.data.tokenizer} isn't the tokenizer that {workdir} was trained with")
    mesh = scale.make_mesh(scale.MeshConfig(fsdp=-1))
    kernel = attention_kernel(config.model, mesh, needs_logits=False)
    model = Transformer(dataclasses.replace(config.model, attention=kernel))
    return Trained(mesh, model, read_weights(path, record, config, mesh), tokenizer, config, int(path.name))


def checkpoint_of(workdir: Path, step: int | None = None) -> Path:
    """The directory of a checkpoint, absolute; the newest where no step is given. Raises UserError where none is."""
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())
    if not steps:
        raise UserError(f"{workdir} has no checkpoint: --workdir takes the directory of a run")
    if step is not None and step not in steps:
        raise UserError(f"{workdir} has no checkpoint of step {step}; there is: {', '.join(map(str, steps))}")
    return (workdir / "checkpoints" / str(steps[-1] if step is None else step)).absolute()


def read_record(path: Path) -> dict[str, Any]:
    """What was saved beside the arrays of a checkpoint; raises UserError where it has changed since."""
    try:
        record = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path / "record")
    except Exception as error:  # a damaged file shows itself in many ways
        raise UserError(f"the record of {path} can't be read: {reason(error)}") from error
    if not sealed(record):
        raise UserError(f"checkpoint {path} is damaged: its record has changed since it was written")
    return record


def config_of(path: Path, record: dict[str, Any]) -> Config:
    """The config in a checkpoint's record; raises UserError where it can't be used."""
    try:
        return from_flat(Config, record["meta"]["config"])
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"the config of {path} can't be used: {reason(error)}") from error


def read_weights(
    path: Path, record: dict[str, Any], config: Config, mesh: Mesh, modules: Collection[str] = ()
) -> Weights:
    """The effective weights of a checkpoint, on a mesh; its moments stay on the disk.

    Args:
      path, record, config: of the checkpoint.
      mesh: where they go.
      modules: paths such as "layers/mlp/up_proj", to read their parameters alone; all where none is given.

    Raises:
      UserError: the checkpoint is damaged, or of another model.
    """
    whole, methods, _ = reparameterized(config)
    table: Any = _restricted(whole, modules) if modules else whole
    reparam = reparameterize(table, *methods)
    raw, state = jax.eval_shape(reparam.init, jax.tree.map(_shape, table), jax.random.key(0))
    shardings = scale.shardings(reparam.table, mesh), jax.tree.map(lambda _: scale.replicated(mesh), state)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), (raw, state), shardings
    )
    part = _read_part(path, record, dict(zip(("raw", "reparam"), abstract, strict=True)))
    merge = jax.jit(reparam.merge, out_shardings=scale.shardings(table, mesh), donate_argnums=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers")  # gates, which no weight can take the place of
        return merge(part["raw"], part["reparam"])


def _restricted(table: Any, modules: Collection[str], path: str = "") -> Any:
    """The part of a table that has the parameters of some modules."""
    part: dict[str, Any] = {}
    for name, inner in table.items():
        if isinstance(inner, Row):
            part |= {name: inner} if path in modules else {}
        else:
            part[name] = _restricted(inner, modules, f"{path}/{name}".lstrip("/"))
    return {name: inner for name, inner in part.items() if inner}


def _shape(row: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(row.shape, np.float32)


def _read_part(path: Path, record: dict[str, Any], abstract: dict[str, Any]) -> dict[str, Any]:
    """Some of a checkpoint's arrays, checked by their digests."""
    wanted = {**abstract, "reparam": list(abstract["reparam"])}  # as Orbax keeps a tuple
    missing = next((name for name in leaves_by_path(wanted) if name not in record["arrays"]), None)
    if missing:
        raise UserError(f"checkpoint {path} is of another model: {missing} is missing there")
    arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
    try:
        part = ocp.PyTreeCheckpointer().restore(
            path / "state", args=ocp.args.PyTreeRestore(wanted, restore_args=arguments, partial_restore=True)
        )
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # the machine's trouble, not the checkpoint's
    except Exception as error:  # a damaged checkpoint shows itself in many ways
        raise UserError(f"the weights of {path} can't be read: {reason(error)}") from error
    changed = [name for name, digest in digests(part).items() if digest != record["arrays"][name]["digest"]]
    if changed:
        raise UserError(f"checkpoint {path} is damaged: {changed[0]} is not what was written")
    return {**part, "reparam": tuple(part["reparam"])}
