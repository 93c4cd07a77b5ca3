"""Configuration: what is declared is what is accepted, and everything else gets one line."""

import dataclasses
import json
from typing import Annotated

import pytest
from ml_collections import ConfigDict

from jaxstab.config import (
    LONGEST_MESSAGE,
    ConfigError,
    Options,
    Range,
    UserError,
    build_method,
    declared,
    flatten,
    from_config_dict,
    from_flat,
    method_section,
    option,
    parse_argument,
    section,
    to_config_dict,
    unchosen,
    unknown,
)
from jaxstab.train.config import Config, EvalConfig, TrainConfig, default_config, resolve, training_keys


def plain():
    """Nothing to set."""
    return "plain"


def scaled(
    factor: Annotated[float, "A factor.", Range(above=0, most=9)] = 2.0,
    mode: Annotated[str, "A mode.", ("up", "down")] = "up",
):
    """Two options."""
    return factor, mode


METHODS = {"plain": plain, "scaled": scaled}
Chosen = method_section("Chosen", METHODS, "scaled", "Which one.")


@dataclasses.dataclass(frozen=True)
class Inner(Options):
    width: int = option(8, "Width.", Range(1))
    rate: float = option(0.5, "Rate.", Range(0))

    def __post_init__(self):
        super().__post_init__()
        if self.width % 2:
            raise ConfigError(f"inner.width={self.width} must be even")


@dataclasses.dataclass(frozen=True)
class Outer(Options):
    inner: Inner = section(Inner)
    method: object = section(Chosen)
    name: str = option("a", "Name.", choices=("a", "b"))
    flag: bool = option(False, "Flag.")
    files: tuple[str, ...] = option((), "Files.")
    lengths: tuple[int, ...] = option((), "Lengths.", Range(1, below=9))


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
        ({"inner": {"width": 0}}, r"inner\.width=0 must be at least 1"),
        ({"inner": {"rate": -0.5}}, r"inner\.rate=-0\.5 must be at least 0"),
        ({"method": {"scaled": {"factor": 0}}}, r"method\.scaled\.factor=0\.0 must be above 0 and at most 9"),
        ({"lengths": (8, 9)}, r"lengths=\(8, 9\) must each be at least 1 and below 9"),
        ({"inner": {"widht": 3}}, r"unknown config key inner\.widht; did you mean inner\.width\?"),
        ({"zzz": 3}, r"unknown config key zzz; known: inner, method, name, flag, files, lengths"),
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
        ("lengths", ()),
    ]


def test_what_is_built_from_python_is_checked_too():
    for cls, values, message in (
        (Inner, {"width": 0}, r"^width=0 must be at least 1$"),
        (Chosen.__dataclass_fields__["scaled"].default_factory, {"factor": 10.0}, r"^factor=10\.0 must be above 0"),
        (TrainConfig, {"warmup_lengths": (0,), "length_warmup": 1}, r"^warmup_lengths=\(0,\) must each be at least 1$"),
    ):
        with pytest.raises(ConfigError, match=message):
            cls(**values)
    with pytest.raises(ConfigError, match=r"^batches=-3 must be at least 0$"):
        dataclasses.replace(EvalConfig(), batches=-3)


def test_a_range_holds_what_it_says():
    for numbers, inside, outside, words in (
        (Range(1), (1, 10**9), (0, -1), "at least 1"),
        (Range(0, 1), (0, 0.5, 1), (-1e-9, 1.1), "at least 0 and at most 1"),
        (Range(0, below=1), (0, 0.999), (1, -0.1), "at least 0 and below 1"),
        (Range(above=0, most=1), (1e-30, 1), (0, 1.1), "above 0 and at most 1"),
    ):
        assert all(value in numbers for value in inside) and not any(value in numbers for value in outside)
        assert str(numbers) == words


def test_options_of_methods_that_are_not_chosen_are_told():
    assert unchosen(flatten(Outer())) == {}
    plain = flatten(build(method={"method": "plain"}))
    assert unchosen(plain) == dict.fromkeys(("method.scaled.factor", "method.scaled.mode"), "method.method")
    values = default_config()
    values.reparam.method = "mlra+wesar"
    idle = unchosen(flatten(resolve(values)))
    assert not {"reparam.mlra.rank", "reparam.wesar.sigma", "optimizer.rule.adamw.b1"} & idle.keys()
    assert (
        idle["reparam.weight_norm.sigma"] == "reparam.method"
        and idle["optimizer.rule.muon.b1"] == "optimizer.rule.method"
    )


def test_a_saved_config_of_another_version_is_read():
    flat = {key: value for key, value in flatten(build(name="b")).items() if key != "inner.width"}
    assert from_flat(Outer, flat | {"inner.depth": 3, "gone.method": "x"}) == build(name="b")


def test_declared_keys_carry_their_documentation():
    found = {key: rest for key, *rest in declared(Outer)}
    assert list(found) == list(flatten(Outer()))
    assert found["inner.width"] == ["int", 8, "Width.", None, Range(1)]
    assert found["method.method"] == ["str", "scaled", "Which one.", ("plain", "scaled"), None]
    assert found["method.scaled.factor"] == ["float", 2.0, "A factor.", None, Range(above=0, most=9)]
    assert found["method.scaled.mode"] == ["str", "up", "A mode.", ("up", "down"), None]
    assert found["files"] == ["tuple[str, ...]", (), "Files.", None, None]


def test_every_key_of_a_run_is_documented_in_one_line():
    keys = list(declared(Config))
    assert len(keys) > 50
    for key, _, default, doc, choices, _ in keys:
        assert doc.endswith(".") and "\n" not in doc, key
        assert choices is None or default in choices, key


def test_every_number_of_a_run_has_a_range():
    keys = [key for key in declared(Config) if "int" in key.type or "float" in key.type]
    assert len(keys) > 50
    for key in keys:
        assert key.range is not None and str(key.range), f"{key.key} needs a Range"
        assert isinstance(key.default, tuple) or key.default in key.range, key.key


# What used to train at nonsense, or to fail with a traceback.
OUT_OF_RANGE = [
    ("eval.batches", -3),
    ("eval.temperature", -1.0),
    ("train.extend", -5),
    ("train.seed", 2**31),
    ("data.seed", -1),
    ("train.z_loss", -1e-4),
    ("model.rope_theta", 0.0),
    ("model.norm_placement.deepnorm.exponent", -1.0),
    ("model.embedding.detach.gamma", 1.5),
    ("init.mup.base_width", 0),
    ("init.complete_p.base_depth", 0),
    ("init.normal.std", 0.0),
    ("init.he.gain", 0.0),
    ("init_search.metainit.iterations", 0),
    ("init_search.metainit.eps", 0.0),
    ("init_search.gradinit.learning_rate", 0.0),
    ("init_search.gradinit.gamma", -1.0),
    ("reparam.weight_norm.sigma", 0.0),
    ("reparam.weight_norm.constant", 0.0),
    ("reparam.sigma_reparam.sigma", -1.0),
    ("reparam.sigma_reparam.iterations", -1),
    ("reparam.mlra.rank", -1),
    ("optimizer.rule.muon.momentum", 1.5),
    ("optimizer.rule.muon.newton_schulz", 0),
    ("optimizer.rule.muon.b2", 1.0),
    ("optimizer.clip.adagc.ratio", -1.0),
    ("optimizer.clip.adagc.decay", 1.0),
    ("optimizer.clip.zclip.warmup", 1),
    ("optimizer.clip.zclip.threshold", 0.0),
    ("optimizer.projection.qk_clip.threshold", 0.0),
    ("optimizer.schedule.cosine.floor", -1.0),
    ("optimizer.schedule.linear.floor", 1.5),
    ("optimizer.schedule.warmup_stable_decay.decay", 0.0),
    ("mesh.tensor", -2),
]


@pytest.mark.parametrize(("key", "value"), OUT_OF_RANGE)
def test_a_number_out_of_its_range_is_refused_in_one_line(key, value):
    *path, name = key.split(".")
    values = section = default_config()
    for part in path:
        section = section[part]
    section[name] = value
    with pytest.raises(ConfigError, match=rf"^{key}={value} must be (at least|above) "):
        resolve(values)


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
    keys = training_keys(flatten(Config()))
    assert {"model.width", "train.batch_size", "optimizer.learning_rate", "optimizer.rule.adamw.b1"} <= keys.keys()
    assert not {"mesh.fsdp", "eval.every", "checkpoint.every", "model.remat", "train.extend"} & keys.keys()
    assert not {"train.accumulation", "train.loss_chunk", "model.attention"} & keys.keys()
    assert "reparam.wesar.sigma" not in keys, "an option of a method that isn't chosen"


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("model", {"width": 10, "heads": 4}, r"model\.width=10 is not divisible by model\.heads=4"),
        ("model", {"heads": 4, "kv_heads": 3}, r"model\.heads=4 is not divisible by model\.kv_heads=3"),
        ("model", {"width": 12, "heads": 4}, r"even head size.*model\.width=12 over model\.heads=4 gives 3"),
        ("model", {"layers": 0}, r"model\.layers=0 must be at least 1"),
        ("train", {"batch_size": 6, "accumulation": 4}, r"train\.batch_size=6 is not .* train\.accumulation=4"),
        ("train", {"loss_chunk": 0}, r"train\.loss_chunk=0 must be at least 1"),
        ("optimizer", {"learning_rate": -1.0}, r"optimizer\.learning_rate=-1\.0 must be at least 0"),
        ("mesh", {"fsdp": -1, "tensor": -1}, r"mesh=.* at most one of them -1"),
        ("mesh", {"fsdp": 0}, r"mesh=.* must be positive"),
        ("data", {"source": "text"}, r"data\.source=text needs data\.files"),
        ("eval", {"texts": ("wiki",)}, r"eval\.texts takes name=glob, not 'wiki'"),
        ("model", {"attention": "cudnn"}, r"attention=cudnn takes bfloat16 alone, not model\.dtype=float32; auto"),
        (
            "model",
            {"attention": "cudnn", "dtype": "bfloat16", "attention_softcap": 50.0},
            r"attention=cudnn takes no capped logits, as model\.attention_softcap=50\.0",
        ),
        (
            "model",
            {"attention": "cudnn", "dtype": "bfloat16", "width": 12, "heads": 3},
            "takes heads of a multiple of 8 up to 256, not 4",
        ),
        (
            "model",
            {"attention": "splash", "attention_softcap": 50.0},
            r"attention=splash takes no capped logits, as model\.attention_softcap=50\.0 asks for; auto and xla do",
        ),
        ("data", {"length": 4096}, r"data\.length=4096 is longer than model\.max_length=2048"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(section, changes, message):
    values = default_config()
    values[section].update(changes)
    with pytest.raises(ConfigError, match=message):
        resolve(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reparam.method": "wesar", "reparam.wesar.trainable_gates": False, "optimizer.decay_factors": ("gate=1",)},
            r"reparam\.method=wesar keeps its gates fixed, and optimizer\.decay_factors would shrink them",
        ),
        (
            {"reparam.method": "wesar", "reparam.wesar.trainable_gates": False, "optimizer.rule.adamw.eps": 0.0},
            r"gates fixed, so that their gradient is zero, which optimizer\.rule\.adamw\.eps=0 divides by zero",
        ),
        (
            {"model.attention": "cudnn", "model.dtype": "bfloat16", "optimizer.projection.method": "qk_clip"},
            r"model\.attention=cudnn has no logits for optimizer\.projection\.method=qk_clip to read",
        ),
        (
            {"model.attention": "splash", "optimizer.projection.method": "qk_clip"},
            r"model\.attention=splash has no logits for optimizer\.projection\.method=qk_clip to read",
        ),
        (
            {"optimizer.schedule.method": "linear", "train.extend": 10},
            r"train\.extend=10 would train at a rate of 0, where optimizer\.schedule\.method=linear ends",
        ),
        (
            {"optimizer.schedule.method": "warmup_stable_decay", "train.extend": 10},
            r"rate of 0, where optimizer\.schedule\.method=warmup_stable_decay ends",
        ),
        (
            {"init.method": "complete_p", "reparam.method": "residual_scaling"},
            r"init\.method=complete_p and reparam\.method=residual_scaling both put a constant",
        ),
        (
            {"init_search.method": "nio", "train.batch_size": 6},
            r"train\.batch_size=6 is not divisible by the 4 parts that init_search\.method=nio takes it in",
        ),
        (
            {"init_search.method": "metainit", "reparam.method": "sigma_reparam", "reparam.sigma_reparam.gate": "one"},
            r"init_search\.method=metainit would change nothing: .* reparam\.method=sigma_reparam begins",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(changes, message):
    values = default_config()
    values.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message) as raised:
        resolve(values)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"reparam.method": "wesar", "optimizer.decay_factors": ("gate=1",)},
        {"reparam.wesar.trainable_gates": False, "optimizer.decay_factors": ("gate=1",)},
        {"optimizer.schedule.method": "linear", "optimizer.schedule.linear.floor": 0.1, "train.extend": 10},
        {"optimizer.schedule.method": "linear", "train.extend": 0},
        {"init.method": "mup", "reparam.method": "residual_scaling"},
        {"model.attention": "auto", "optimizer.projection.method": "qk_clip"},
    ],
)
def test_what_goes_together_is_not(changes):
    values = default_config()
    values.update_from_flattened_dict(changes)
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


def test_a_message_is_one_line_that_can_be_printed_whatever_it_repeats():
    assert str(ConfigError("a\nb\0c\x1b[31m\ud800é")) == "a\\nb\\x00c\\x1b[31m\\ud800é"
    long = str(UserError("x" * 100_000 + " is no number"))
    assert len(long) <= LONGEST_MESSAGE and long.endswith(" is no number")
