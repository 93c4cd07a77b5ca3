"""`main.py import`: a model from elsewhere becomes a workdir with a checkpoint of step 0, which a run goes on from."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxstab import data
from jaxstab.config import ConfigError, UserError, flatten
from jaxstab.exchange import llama2c
from jaxstab.exchange import weights as exchanged
from jaxstab.exchange.card import IMPORTED
from jaxstab.exchange.check import logits_of
from jaxstab.exchange.families import FAMILIES
from jaxstab.exchange.family import Family, untied
from jaxstab.exchange.folder import folder_tensors, read_json
from jaxstab.exchange.gates import Gates, are_stored, factors, take_gates, with_gates
from jaxstab.exchange.tensors import Tensor
from jaxstab.exchange.tokenizer import stage
from jaxstab.logging.console import say
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import EMBEDDINGS
from jaxstab.model.transformer import read_table
from jaxstab.reparam import METHODS, Method, compose
from jaxstab.train import workdir as workdirs
from jaxstab.train.checkpoint import Checkpoints, reason
from jaxstab.train.config import Config, check
from jaxstab.train.program import build
from jaxstab.train.setup import reparameterized
from jaxstab.train.state import TrainState, wrapped_state

RECIPE_S = ("dtype", "remat", "attention", "mask_documents")  # keys of the model that the recipe decides


@dataclasses.dataclass(frozen=True)
class Found:
    """A model in files, of which nothing but headers has been read.

    Attributes:
      source: the folder, or the file of llama2.c.
      family, model: what it is.
      places: where every parameter is.
      gates: those that lie beside its matrices, by our modules.
      factors: what its parameters are multiplied by, by our paths.
    """

    source: Path
    family: Family
    model: ModelConfig
    places: dict[exchanged.Piece, Tensor]
    gates: Gates
    factors: Gates

    def weights(self) -> Any:
        """The effective weights, float32, as NumPy arrays; raises UserError at a tensor that can't be read."""
        table = read_table(self.model)
        return exchanged.read(self.family, self.model.heads, table, self.places, self.factors)


def find(source: Path) -> Found:
    """Reads what a folder, or a file of llama2.c, says of its model; raises UserError where that isn't one of ours."""
    if source.is_file():
        theirs, tensors = llama2c.llama(source)
    else:
        tensors = folder_tensors(source)
        theirs = read_json(source / "config.json")
    kind = theirs.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{source} has model_type={kind!r}; known: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    try:
        model = family.model(theirs)
        table, gates = read_table(model), take_gates(family, model, tensors)
        places = exchanged.located(family, table, tensors)
        return Found(source, family, model, places, gates, factors(family, model, theirs, table, gates))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def import_model(
    source: Path, config: Config, workdir: Path, overridden: Sequence[str] = (), console: Console | None = None
) -> float:
    """Makes a workdir of a model from elsewhere, with the recipe of a config.

    Args:
      source: a folder with config.json and safetensors, or a file of llama2.c.
      config: the recipe; what the model is, comes from `source`.
      workdir: new; gets the config, the tokenizer and a checkpoint of step 0.
      overridden: the config's keys that the command line gives.

    Returns:
      The largest difference of a logit between the model as it was read and as it is stored.

    Raises:
      UserError: something of `source`, the recipe or the workdir doesn't fit; then nothing is written.
    """
    console = console or Console(highlight=False)
    if (workdir / workdirs.CONFIG).exists() or (workdir / "checkpoints").exists():
        raise UserError(f"{workdir} holds a run already; import into a new workdir")
    found = find(source)
    config = with_model(config, found, overridden)
    with tempfile.TemporaryDirectory() as staged:
        own = {} if "data.tokenizer" in overridden else stage(source, Path(staged))
        config = _with_tokenizer(config, staged, own)
        keeps_gates = are_stored(found.gates, reparameterized(config)[2].table)
        if found.gates and not keeps_gates:  # a head with a gate of its own is no longer the embedding
            config = dataclasses.replace(config, model=untied(config.model))
        program = build(config, config.model.vocabulary - 1)
        _check_preserved(config, program.setup.methods)
        say(console, _plan(found))
        weights = jax.tree.map(jnp.asarray, found.weights())
        state = wrapped_state(program.setup, weights)
        if keeps_gates:
            state = state._replace(raw=with_gates(state.raw, found.gates))
            say(console, f"The {len(found.gates)} kinds of gates are kept as they were trained.")
        logits = logits_of(config.model, weights)
        difference = float(np.max(np.abs(logits - logits_of(config.model, program.merge(state)))))
        workdirs.make(workdir)
        with workdirs.alone(workdir):
            if own:
                try:
                    shutil.copytree(staged, workdir / "tokenizer")
                except OSError as error:  # of several files, whose reasons are one
                    raise UserError(f"{workdir / 'tokenizer'} can't be written: {reason(error)}") from error
                config = _with_tokenizer(config, str(workdir / "tokenizer"), own)
            _save(config, state, workdir, found, difference)
    say(console, f"With reparam.method={config.reparam.method} its logits differ by {difference:.2g} at most.")
    say(console, f"Go on with: python main.py --workdir={workdir}")
    return difference


def recipe_of(source: Path, config: Config, workdir: Path, overridden: Sequence[str] = ()) -> Config:
    """The config of several runs that begin with one model from elsewhere.

    Its tokenizer is put into a folder of the workdir that is named by what is in it.

    Args:
      source, config, overridden: as `import_model` takes them.
      workdir: of them all.

    Raises:
      UserError: something of `source`, the recipe or the workdir doesn't fit.
    """
    found = find(source)
    if found.gates:
        raise UserError(f"{source} has gates of its own; export a run of it first, which merges them (docs/export.md)")
    config = with_model(config, found, overridden)
    if "data.tokenizer" in overridden:
        return _with_tokenizer(config, "", {})
    workdirs.make(workdir)
    try:
        with tempfile.TemporaryDirectory(dir=workdir) as beside:
            staged = Path(beside) / "tokenizer"
            staged.mkdir()
            own = stage(source, staged)
            content = b"".join(path.name.encode() + path.read_bytes() for path in sorted(staged.iterdir()))
            tokenizer = workdir.resolve() / f"tokenizer-{hashlib.sha256(content).hexdigest()[:8]}"
            if own and not tokenizer.exists():
                with contextlib.suppress(OSError):  # another process was faster
                    staged.rename(tokenizer)
    except OSError as error:
        raise UserError(f"the tokenizer of {source} can't be put into {workdir}: {reason(error)}") from error
    return _with_tokenizer(config, str(tokenizer), own)


def undrawn(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a method that mean something for a model that isn't drawn."""
    return {key: value for key, value in overrides.items() if not _is_of_draw(key, value)}


def _is_of_draw(key: str, value: Any) -> bool:
    return key.startswith("init.") or (key == "model.embedding.method" and EMBEDDINGS[value]().only_scales)


def check_model(config: Config, model: ModelConfig) -> None:
    """Raises ConfigError where runs of a config can't begin with a model's weights."""
    _check_preserved(config, compose(config.reparam, METHODS))
    for key, ours, theirs in _differing(config.model, model):
        raise ConfigError(f"model.{key} would be {ours}, and the weights are of a model with {theirs}")


def _differing(recipe: ModelConfig, model: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
    """The keys in which a recipe is of another model, where it has no say; with the value of each."""
    theirs = flatten(model)
    for key, ours in flatten(recipe).items():
        if ours != theirs[key] and not key.startswith(RECIPE_S):
            yield key, ours, theirs[key]


def with_model(config: Config, found: Found, overridden: Sequence[str]) -> Config:
    """The recipe for a model that was found; raises ConfigError where the command line asks for another model."""
    for key, asked, has in _differing(config.model, found.model):
        if f"model.{key}" in overridden:
            raise ConfigError(f"--config.model.{key}={asked} is not what {found.source} holds, {has}; leave it out")
    recipe_s = {key: getattr(config.model, key) for key in RECIPE_S}
    config = dataclasses.replace(config, model=dataclasses.replace(found.model, **recipe_s))
    check(config)
    return config


def _with_tokenizer(config: Config, path: str, keys: dict[str, str]) -> Config:
    """The config with the tokenizer that came with the model, if one did; raises UserError where it has more pieces."""
    if keys:
        named = dataclasses.replace(config.data, tokenizer=path, end_token=keys["end_token"])
        config = dataclasses.replace(config, data=named)
    tokenizer = data.load_tokenizer(config.data.tokenizer, config.data.end_token)
    return config.with_vocabulary(tokenizer.vocabulary)


def _check_preserved(config: Config, methods: Sequence[Method]) -> None:
    """Raises a ConfigError where the reparameterization would change the model that it is given."""
    if config.search:
        raise ConfigError(
            f"init_search.method={config.init_search.method} is of drawn weights, and an imported model begins "
            "with its own; leave it out"
        )
    if not all(method.preserves for method in methods):
        raise ConfigError(
            f"reparam.method={config.reparam.method} does not keep the weights that it is given: it begins "
            "elsewhere, with these options; wesar, and weight_norm and sigma_reparam with gate=norm, keep them"
        )


def _plan(found: Found) -> str:
    files = {tensor.path for tensor in found.places.values()}
    size = sum(path.stat().st_size for path in files)
    return (
        f"Importing {found.family.architecture} from {found.source}: {exchanged.size(found.places):,} parameters in "
        f"{len(files)} file{'s' * (len(files) > 1)}, {size / 1e9:.3g} GB"
    )


def _save(config: Config, state: TrainState, workdir: Path, found: Found, difference: float) -> None:
    """Writes the checkpoint of step 0 and then, since a run goes on from a workdir that has one, the config."""
    tokenizer = data.load_tokenizer(config.data.tokenizer, config.data.end_token)
    identity = {"tokenizer_digest": tokenizer.digest}
    meta = {"step": 0, "position": 0, "attempt": 0, "config": flatten(config), **identity}
    with Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints:
        checkpoints.save(0, state, meta, force=True)
    origin = {"source": str(found.source), "architecture": found.family.architecture}
    workdirs.write_whole(workdir / IMPORTED, {**origin, "largest_logit_difference": difference})
    workdirs.claim(workdir, config, identity)
