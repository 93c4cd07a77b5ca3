"""Configuration: what is declared is what is accepted, and everything else gets one line."""

import dataclasses
import json
from typing import Annotated

import pytest
from ml_collections import ConfigDict

from jaxstab.config import (
    ConfigError,
    UserError,
    build_method,
    declared,
    flatten,
    from_config_dict,
    method_section,
    option,
    parse_argument,
    section,
    to_config_dict,
    unknown,
)
from jaxstab.train.config import Config, default_config, resolve, training_keys


def plain():
    """Nothing to set."""
    return "plain"


def scaled(
    factor: Annotated[float, "A factor."] = 2.0,
    mode: Annotated[str, "A mode.", ("up", "down")] = "up",
):
    """Two options."""
    return factor, mode


METHODS = {"plain": plain, "scaled": scaled}
Chosen = method_section("Chosen", METHODS, "scaled", "Which one.")


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = option(8, "Width.")
    rate: float = option(0.5, "Rate.")

    def __post_init__(self):
        if self.width % 2:
            raise ConfigError(f"inner.width={self.width} must be even")


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = section(Inner)
    method: object = section(Chosen)
    name: str = option("a", "Name.", choices=("a", "b"))
    flag: bool = option(False, "Flag.")
    files: tuple[str, ...] = option((), "Files.")


def build(**values):
    return from_config_dict(Outer, ConfigDict(values))


def test_what_is_not_given_takes_its_default():
    assert build() == Outer()
    assert build(inner={"rate": 1.0}).inner == Inner(8, 1.0)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"inner": {"rate": 3}}, 3.0),
        ({"files": ["x", "y"]}, ("x", "y")),
        ({"files": ("x",)}, ("x",)),
        ({"files": "x"}, ("x",)),
        ({"flag": True}, True),
    ],
)
def test_an_int_widens_and_a_sequence_becomes_a_tuple(given, taken):
    (key,) = given
    value = getattr(build(**given), key)
    value = value.rate if key == "inner" else value
    assert value == taken and type(value) is type(taken)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inner": {"width": 1.5}}, r"config key inner\.width takes an int, not 1\.5"),
        ({"inner": {"width": "8"}}, r"config key inner\.width takes an int, not '8'"),
        ({"inner": {"width": True}}, r"config key inner\.width takes an int, not True"),
        ({"inner": {"rate": False}}, r"config key inner\.rate takes a float, not False"),
        ({"inner": {"rate": None}}, r"config key inner\.rate takes a float, not None"),
        ({"inner": {"rate": float("nan")}}, r"config key inner\.rate takes a finite number, not nan"),
        ({"flag": 1}, r"config key flag takes a bool, not 1"),
        ({"files": 3}, r"config key files takes a tuple, not 3"),
        ({"files": ("x", 3)}, r"config key files takes a str, not 3"),
        ({"inner": 3}, r"config key inner is a section, not the value 3"),
        ({"name": "c"}, r"config key name='c' is not one of: a, b"),
        ({"method": {"method": "scald"}}, r"config key method\.method='scald' is not one of: plain, scaled"),
        ({"method": {"scaled": {"mode": "left"}}}, r"config key method\.scaled\.mode='left' is not one of: up, down"),
        ({"inner": {"widht": 3}}, r"unknown config key inner\.widht; did you mean inner\.width\?"),
        ({"zzz": 3}, r"unknown config key zzz; known: inner, method, name, flag, files"),
        ({"inner": {"width": 3}}, r"inner\.width=3 must be even"),
    ],
)
def test_what_does_not_fit_gets_one_line(given, message):
    with pytest.raises(ConfigError, match=f"^{message}$") as raised:
        build(**given)
    assert "\n" not in str(raised.value) and isinstance(raised.value, UserError)


def test_a_method_brings_its_options_and_is_called_with_them():
    assert build_method(Outer().method, METHODS) == (2.0, "up")
    assert build_method(build(method={"scaled": {"factor": 5, "mode": "down"}}).method, METHODS) == (5.0, "down")
    assert build_method(build(method={"method": "plain"}).method, METHODS) == "plain"


def test_flat_keys_are_in_the_order_of_declaration():
    assert list(flatten(Outer()).items()) == [
        ("inner.width", 8),
        ("inner.rate", 0.5),
        ("method.method", "scaled"),
        ("method.scaled.factor", 2.0),
        ("method.scaled.mode", "up"),
        ("name", "a"),
        ("flag", False),
        ("files", ()),
    ]


def test_declared_keys_carry_their_documentation():
    found = {key: rest for key, *rest in declared(Outer)}
    assert list(found) == list(flatten(Outer()))
    assert found["inner.width"] == ["int", 8, "Width.", None]
    assert found["method.method"] == ["str", "scaled", "Which one.", ("plain", "scaled")]
    assert found["method.scaled.mode"] == ["str", "up", "A mode.", ("up", "down")]
    assert found["files"] == ["tuple[str, ...]", (), "Files.", None]


def test_every_key_of_a_run_is_documented_in_one_line():
    keys = list(declared(Config))
    assert len(keys) > 50
    for key, _, default, doc, choices in keys:
        assert doc.endswith(".") and "\n" not in doc, key
        assert choices is None or default in choices, key


def test_a_run_s_config_survives_overriding_and_saving():
    values = default_config()
    values.model.width, values.reparam.method, values.eval.texts = 96, "wesar", ("a=b", "c=d")
    config = resolve(values)
    assert (config.model.width, config.reparam.method, config.eval.texts) == (96, "wesar", ("a=b", "c=d"))
    assert resolve(to_config_dict(config)) == config
    saved = json.loads(to_config_dict(config).to_json())
    assert from_config_dict(Config, saved) == config
    assert resolve(default_config()) == Config()


def test_where_a_run_runs_is_not_what_it_trains():
    keys = training_keys(Config())
    assert {"model.width", "train.batch_size", "optimizer.learning_rate", "reparam.wesar.sigma"} <= keys.keys()
    assert not {"mesh.fsdp", "eval.every", "checkpoint.every", "model.remat", "train.extend"} & keys.keys()


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("model", {"width": 10, "heads": 4}, r"model\.width=10 is not divisible by model\.heads=4"),
        ("model", {"heads": 4, "kv_heads": 3}, r"model\.heads=4 is not divisible by model\.kv_heads=3"),
        ("model", {"width": 12, "heads": 4}, r"even head size.*model\.width=12 over model\.heads=4 gives 3"),
        ("model", {"layers": 0}, r"model\.layers=0 must be at least 1"),
        ("train", {"batch_size": 6, "accumulation": 4}, r"train\.batch_size=6 is not .* train\.accumulation=4"),
        ("train", {"loss_chunk": 0}, r"train\.loss_chunk=0 must be at least 1"),
        ("optimizer", {"learning_rate": -1.0}, r"optimizer\.learning_rate=-1\.0 must not be negative"),
        ("mesh", {"fsdp": -1, "tensor": -1}, r"mesh=.* at most one of them -1"),
        ("mesh", {"fsdp": 0}, r"mesh=.* must be positive"),
        ("data", {"length": 4096}, r"data\.length=4096 is longer than model\.max_length=2048"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(section, changes, message):
    values = default_config()
    values[section].update(changes)
    with pytest.raises(ConfigError, match=message):
        resolve(values)


def test_the_vocabulary_is_the_tokenizer_s_or_larger():
    config = resolve(default_config())
    assert config.with_vocabulary(32000) is config
    with pytest.raises(ConfigError, match=r"model\.vocabulary=32000 is smaller than the 32001 pieces"):
        config.with_vocabulary(32001)
    values = default_config()
    values.model.vocabulary = 0
    assert resolve(values).with_vocabulary(77).model.vocabulary == 77


def test_a_micro_batch_must_spread_over_the_devices():
    values = default_config()
    values.train.batch_size, values.train.accumulation = 24, 3
    resolve(values).check_devices(8)
    with pytest.raises(ConfigError, match=r"train\.batch_size=24 in 3 micro-batches .* over 16 data-parallel devices"):
        resolve(values).check_devices(16)


def test_a_config_file_s_argument():
    choices = {"size": ("130m", "13b"), "method": ("wesar",), "free": ()}
    assert parse_argument(None, **choices) == {"size": "130m", "method": "wesar", "free": ""}
    assert parse_argument("", **choices) == parse_argument(None, **choices)
    assert parse_argument("size=13b,free=x=y", **choices) == {"size": "13b", "method": "wesar", "free": "x=y"}
    with pytest.raises(ConfigError, match=r"config argument size='7b' is not one of: 130m, 13b"):
        parse_argument("size=7b", **choices)
    with pytest.raises(ConfigError, match=r"unknown config argument 'sise'; did you mean size\?"):
        parse_argument("sise=13b", **choices)


def test_an_unknown_name_is_answered_with_the_nearest_or_with_all():
    assert unknown("command 'trian'", "trian", ["train", "describe"]) == (
        "unknown command 'trian'; did you mean train?"
    )
    assert unknown("command 'x'", "x", ["train", "describe"]) == "unknown command 'x'; known: train, describe"
