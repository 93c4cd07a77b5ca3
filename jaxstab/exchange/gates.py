"""Gates that lie beside the matrices of a model that isn't merged yet: merged into them, or kept as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.config import UserError, build_method
from jaxstab.exchange.family import Family
from jaxstab.exchange.tensors import Tensor
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import EMBEDDINGS
from jaxstab.table import BRANCH_OUTPUTS, Effective, Raw, Row, Stored, Table, rows

Gates = dict[str, np.ndarray]  # by our modules, [L] in the blocks


def take_gates(family: Family, model: ModelConfig, tensors: dict[str, Tensor]) -> Gates:
    """Takes the gates out of a model's tensors; one that isn't there is 1.

    Raises:
      UserError: a gate is no single number, or 0 or not finite.
    """
    gates: Gates = {}
    for name, modules in family.gates.items():
        is_stacked = "{}" in name
        names = [name.format(n) for n in range(model.layers)] if is_stacked else [name]
        values = [_value(tensors.pop(family.prefix + each, None) or tensors.pop(each, None)) for each in names]
        gates |= dict.fromkeys(modules, np.array(values if is_stacked else values[0], np.float32))
    return gates


def _value(tensor: Tensor | None) -> float:
    if tensor is None:
        return 1.0
    if tensor.shape not in ((), (1,)):
        raise UserError(f"{tensor.name} of {tensor.path} is of shape {list(tensor.shape)}, and a gate is one number")
    value = float(np.asarray(tensor.array(), np.float32).reshape(()))
    if not np.isfinite(value) or value == 0:
        raise UserError(f"{tensor.name} of {tensor.path} is {value}, and a gate is a number other than 0")
    return value


def factors(
    family: Family, model: ModelConfig, theirs: Mapping[str, Any], table: Table[Effective], gates: Gates
) -> Gates:
    """What every parameter of the files is multiplied by to be an effective one of ours, by its path."""
    embedding = build_method(model.embedding, EMBEDDINGS).multiplier(1.0, model.width)
    branch = family.branch(theirs)

    def factor(row: Row) -> np.ndarray:
        constant = embedding if row.role == "embed_tokens" else branch if row.role in BRANCH_OUTPUTS else 1.0
        return np.asarray(constant * gates.get(row.path.rpartition("/")[0], np.ones(())), np.float32)

    return {row.path: each for row in rows(table) if np.any((each := factor(row)) != 1)}


def along(factor: np.ndarray, array: Any) -> Any:
    """A factor of each block, or of the whole, shaped to multiply a parameter."""
    return factor.reshape(factor.shape + (1,) * (array.ndim - factor.ndim))


def are_stored(gates: Gates, table: Table[Stored]) -> bool:
    """Whether the reparameterization of a run stores these gates, all of them and no others."""
    stored = {row.path.rsplit("/", 2)[0] for row in rows(table) if row.role == "gate"}
    shared = {module.replace("up_proj", "gate_proj") for module in gates}
    return bool(gates) and stored == shared


def with_gates(raw: Raw, gates: Gates) -> Raw:
    """Stored parameters with other gates, and matrices that make up for it: the effective weights stay.

    A tied head, which has no matrix of its own, takes its gate as it is.
    """
    old = {module: _gate(_at(raw, module)) for module in gates}

    def changed(path: Any, leaf: jax.Array) -> jax.Array:
        module, _, name = jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")
        module = module.rpartition("/")[0]
        if module not in gates or name not in ("weight", "gate"):
            return leaf
        before = old[module] if old[module] is not None else old[module.replace("up_proj", "gate_proj")]
        return jnp.asarray(gates[module]) if name == "gate" else leaf * along(before / gates[module], leaf)

    return jax.tree_util.tree_map_with_path(changed, raw)


def _at(tree: Any, module: str) -> Any:
    for name in module.split("/"):
        tree = tree[name]
    return tree


def _gate(module: Any) -> Any:
    return next(stored["gate"] for stored in module.values() if isinstance(stored, dict))
