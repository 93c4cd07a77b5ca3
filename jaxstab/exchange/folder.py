"""A Hugging Face model's folder, from anywhere: its config.json, and its tensors by name. Nothing in it is executed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxstab import safe_json
from jaxstab.config import UserError
from jaxstab.exchange.tensors import Tensor, tensors

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LONGEST_JSON = 50_000_000  # bytes; an index of 100,000 tensors has 10 million


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file; raises UserError where it is missing, too long or something else."""
    try:
        if path.stat().st_size > LONGEST_JSON:
            raise ValueError(f"it has more than {LONGEST_JSON:,} bytes")
        values = safe_json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as JSON: {str(error).splitlines()[0][:200]}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object")
    return values


def folder_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder with model.safetensors, or with shards and their index.

    Raises:
      UserError: there is neither, a shard is missing or not in this folder, or a tensor isn't in its shard.
    """
    if (folder / SINGLE).is_file():
        return tensors(folder / SINGLE)
    if (folder / INDEX).is_file():
        return index_tensors(folder / INDEX)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    pickles = sorted(each.name for each in folder.iterdir() if each.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"{folder} holds pickles ({pickles[0]}), which run code when they are read; none is read here: save the "
            "model as safetensors"
        )
    raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}")


def index_tensors(path: Path, choose: Callable[[list[str]], Mapping[str, str]] | None = None) -> dict[str, Tensor]:
    """The tensors of the shards that an index names.

    Args:
      path: of the index.
      choose: names -> {any key: one of them}, where only some are asked for: other shards may be missing.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise UserError(f"{path} is not an index of safetensors files: it has no weight_map")
    asked = {name: weight_map[name] for name in choose(list(weight_map)).values()} if choose else weight_map
    shards = {shard: tensors(_shard(path, shard)) for shard in sorted(set(asked.values()))}
    for name, shard in asked.items():
        if name not in shards[shard]:
            raise UserError(f"{name} is missing in {path.with_name(shard)}, where {path.name} says that it is")
    return {name: tensor for shard in shards.values() for name, tensor in shard.items() if choose or name in asked}


def _shard(index: Path, name: str) -> Path:
    """A shard's path; an index names files beside it and no others."""
    if Path(name).name != name or name in (".", "..") or "\\" in name or not name.endswith(".safetensors"):
        raise UserError(f"{index} names the shard {name!r}, which is no safetensors file beside it")
    path = index.with_name(name)
    if not path.is_file():
        raise UserError(f"the shard {path} is missing, which {index.name} names")
    return path
