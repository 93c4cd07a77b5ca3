"""A workdir outlives the version of the package that made it: what is continued is what the run trains."""

import dataclasses
import json

import pytest

from jaxstab.config import ConfigError, flatten
from jaxstab.train.config import Config, default_config, resolve
from jaxstab.train.workdir import CONFIG, claim

IDENTITY = {"tokenizer_digest": "ab", "data_digest": "01"}


def config_of(**changes):
    values = default_config()
    values.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return resolve(values)


def save(workdir, config, without=(), identity=IDENTITY, **more):
    """A workdir of an older version: without some keys, with others that are no more."""
    kept = {key: value for key, value in flatten(config).items() if not key.startswith(without)}
    (workdir / CONFIG).write_text(json.dumps({"config": kept | more, "identity": identity}))


def test_a_key_that_the_run_is_older_than_has_its_default(tmp_path):
    save(tmp_path, Config(), without=("train.length_warmup", "model.attention", "optimizer.projection", "stability."))
    claim(tmp_path, Config(), IDENTITY, pytest.fail)
    with pytest.raises(ConfigError, match=r"mend: optimizer\.projection\.method \(there 'none', here 'qk_clip'\)$"):
        claim(tmp_path, config_of(optimizer__projection__method="qk_clip"), IDENTITY)


def test_a_digest_that_the_run_is_older_than_is_not_missed(tmp_path):
    save(tmp_path, Config(), identity={"tokenizer_digest": "ab"})
    claim(tmp_path, Config(), IDENTITY, pytest.fail)


def test_a_key_that_is_no_more_is_told_in_one_line_and_left_out(tmp_path):
    save(tmp_path, Config(), **{"train.magic": 3, "eval.glitter": 1, "init.gone.std": 0.1})
    lines = []
    claim(tmp_path, Config(), IDENTITY, lines.append)
    assert lines == [f"{tmp_path / CONFIG} has keys that this version doesn't know and leaves out: train.magic=3"]


def test_options_of_methods_that_are_not_chosen_do_not_count(tmp_path):
    save(tmp_path, config_of(reparam__wesar__sigma=0.5), without=("optimizer.rule.muon", "init.mup"))
    claim(tmp_path, config_of(optimizer__rule__muon__rms=0.5), IDENTITY, pytest.fail)


def test_a_method_that_differs_is_named_without_its_options(tmp_path):
    save(tmp_path, config_of(optimizer__rule__method="muon"))
    with pytest.raises(ConfigError, match=r"mend: optimizer\.rule\.method \(there 'muon', here 'adamw'\)$"):
        claim(tmp_path, Config(), IDENTITY)


def test_an_option_of_a_chosen_method_counts(tmp_path):
    save(tmp_path, config_of(reparam__method="mlra+wesar"))
    with pytest.raises(ConfigError, match=r"mend: reparam\.mlra\.rank \(there 0, here 3\)$"):
        claim(tmp_path, config_of(reparam__method="mlra+wesar", reparam__mlra__rank=3), IDENTITY)


def test_how_a_batch_is_taken_may_change(tmp_path):
    save(tmp_path, Config())
    changes = {"train__accumulation": 4, "train__loss_chunk": 7, "model__attention": "xla", "mesh__fsdp": 2}
    claim(tmp_path, config_of(**changes), IDENTITY, pytest.fail)
    other = dataclasses.replace(Config(), train=dataclasses.replace(Config().train, batch_size=64))
    with pytest.raises(ConfigError, match=r"train\.batch_size \(there 32, here 64\)$"):
        claim(tmp_path, other, IDENTITY)
