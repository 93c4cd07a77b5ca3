"""The door: a mistake gets one line that says what was given and what would be right, and nothing is begun."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import main
from jaxstab.config import ConfigError

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "train" / "tiny.py"

GET_CONFIG = """
from jaxstab.train.config import default_config

def get_config():
    config = default_config()
    {}
    return config
"""
FILES = {
    "good.jsonl": "".join(json.dumps({"text": f"document {i} " + "of words " * 20}) + "\n" for i in range(40)),
    "short.txt": "Fewer tokens than a batch has, and more than one record.",
    "shorter.txt": "A word.",
    "empty.jsonl": "",
    "picture.png": "no text",
    "latin.txt": b"first\ncaf\xe9\n",
    "torn.jsonl.gz": b"not compressed",
    "torn.parquet": b"PAR1, and nothing else",
    "field.jsonl": '{"text": "first"}\n\n{"body": "third"}\n',
    "json.jsonl": '{"text": "first"}\n{"text": \n',
    "object.json": "{}",
    "broken.json": "no JSON",
    "broken.model": "no model",
    "syntax.py": "def get_config(:\n",
    "raises.py": GET_CONFIG.format("config.model.width = 1 // 0"),
    "typo.py": GET_CONFIG.format("config.model.widht = 64"),
    "type.py": GET_CONFIG.format("config.model.width = 'wide'"),
    "empty.py": "def get_config():\n    pass\n",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with FILES, and with a directory that looks like a file."""
    directory = tmp_path_factory.mktemp("place")
    for name, content in FILES.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (directory / "folder.txt").mkdir()
    return directory


def command(place, *arguments):
    """A command line that is right but for what `arguments` add to it, or replace."""
    usual = [
        f"--config={TINY}",
        "--workdir={}/run",
        "--config.data.files={}/good.jsonl",
        "--config.data.cache_dir={}/c",
    ]
    given = {argument.split("=")[0]: argument for argument in [*usual, *arguments]}
    return ["main.py", *(argument.replace("{}", str(place)) for argument in given.values())]


def only_line(stderr):
    """The one line on stderr that isn't progress."""
    (line,) = [line for line in stderr.splitlines() if not line.startswith("Tokenising")]
    return line


def refused(argv, capsys):
    """Runs what must be refused; returns the line."""
    assert main.main(argv) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    line = only_line(captured.err)
    assert line.startswith("error: ")
    return line


# What is wrong on the command line, and what the line must tell: what was given, and what would be right.
BAD_VALUES = [
    ("--config.optimizer.learing_rate=1", "optimizer.learing_rate", "did you mean optimizer.learning_rate?"),
    ("--config.modle.width=64", "modle.width", "did you mean model.width?"),
    ("--config.reparam.wesar.sgima=1", "reparam.wesar.sgima", "did you mean reparam.wesar.sigma?"),
    ("--config.model=small", "unknown config key model;", "did you mean model."),
    ("--config.train.steps=many", "--config.train.steps=many", "int()"),
    ("--config.train.steps=1.5", "--config.train.steps=1.5", "int()"),
    ("--config.train.steps=0", "train.steps=0", "at least 1"),
    ("--config.optimizer.learning_rate=fast", "--config.optimizer.learning_rate=fast", "float"),
    ("--config.optimizer.learning_rate=-1", "optimizer.learning_rate=-1.0", "must be at least 0"),
    ("--config.optimizer.learning_rate=nan", "optimizer.learning_rate takes a finite number, not nan"),
    ("--config.optimizer.clip.global_norm.max_norm=-1", "max_norm=-1.0 must be above 0"),
    ("--config.optimizer.rule.adamw.b1=1.5", "optimizer.rule.adamw.b1=1.5", "at least 0 and below 1"),
    ("--config.reparam.method=wesar --config.reparam.wesar.sigma=0", "reparam.wesar.sigma=0.0 must be above 0"),
    ("--config.model.norm_eps=-1", "model.norm_eps=-1.0 must be at least 0"),
    ("--config.model.kv_heads=-2", "model.kv_heads=-2 must be at least 0"),
    ("--config.model.attention=cudnn", "model.attention=cudnn takes bfloat16 alone", "auto and xla take it"),
    (
        "--config.model.attention=cudnn --config.model.dtype=bfloat16",
        "model.attention=cudnn needs an NVIDIA GPU, not a cpu",
        "auto runs everywhere",
    ),
    (
        "--config.reparam.method=identity --config.reparam.wesar.sigma=1",
        "--config.reparam.wesar.sigma has no effect with reparam.method=identity",
        "add --config.reparam.method=wesar",
    ),
    (
        "--config.optimizer.rule.muon.momentum=0.9",
        "--config.optimizer.rule.muon.momentum has no effect with optimizer.rule.method=adamw",
        "add --config.optimizer.rule.method=muon",
    ),
    ("--noconfig.reparam.mlra.control", "--config.reparam.mlra.control has no effect with reparam.method=wesar"),
    ("describe --config.init.mup.std=0.1", "--config.init.mup.std has no effect with init.method=he"),
    (
        "--config.optimizer.schedule.method=linear --config.train.extend=5",
        "train.extend=5 would train at a rate of 0",
    ),
    ("--config.model.bias=maybe", "--config.model.bias=maybe", "boolean"),
    ("--config.reparam.method=weser", "reparam.method='weser'", "one of: identity, wesar"),
    ("--config.model.mlp=gleu", "model.mlp='gleu'", "one of: gelu, gelu_tanh, relu, relu2, swiglu"),
    ("--config.data.source=disk", "data.source='disk'", "one of: stdlib, text, tfds, huggingface"),
    ("--config.model.heads=3", "model.width=16 is not divisible by model.heads=3"),
    ("--config.model.kv_heads=3", "model.heads=2 is not divisible by model.kv_heads=3"),
    ("--config.model.vocabulary=100", "model.vocabulary=100", "data.tokenizer=bytes", "set it to 0 or at least 257"),
    ("--config.train.accumulation=3", "train.batch_size=4 is not divisible by train.accumulation=3"),
    ("--config.mesh.fsdp=8", "train.batch_size=4", "not divisible over 8 data-parallel devices"),
    ("--config.mesh.fsdp=99", "mesh=(1, 99, 1, 1) needs 99 devices", "there are 8"),
    ("--config.optimizer.warmup=99", "optimizer.warmup=99 is longer than the run, train.steps=8"),
    ("--config.data.length=32", "data.length=32 is longer than model.max_length=16"),
    ("--config.checkpoint.keep_last=0", "checkpoint.keep_last=0", "at least 1"),
    ("--config.eval.texts=wiki", "eval.texts takes name=glob, not 'wiki'"),
    ("--config.eval.sample_length=9 --config.eval.sample_prompt='Once upon a time'", "of 17 tokens", "max_length=16"),
    ("--config.data.files={}/none-*.txt", "nothing matches '{}/none-*.txt'"),
    ("--config.data.files=", "data.source=text needs data.files"),
    ("--config.data.files=,", "data.source=text needs data.files"),
    ("--config.eval.texts=validation={}/a.txt", "has the name of another set that is measured; take another name"),
    ("--config.eval.texts=a={}/a.txt,a={}/b.txt", "has the name of another set that is measured; take another name"),
    ("--config.eval.texts=a/b={}/a.txt", "not 'a/b={}/a.txt'; a name is of letters, digits, _, . and -"),
    ("--config.train.steps=2147483648", "train.steps=2147483648 must be at least 1 and at most 2147483647"),
    ("--config.train.extend=2147483647", "are beyond step 2147483647"),
    ("--config.train.steps=1e9999", "--config.train.steps=1e9999"),
    ("--config.data.files={}/empty.jsonl", "{}/empty.jsonl is empty"),
    ("--config.data.files={}/picture.png", "{}/picture.png: not one of .txt, .jsonl, .json, .parquet"),
    ("--config.data.files={}/folder.txt", "{}/folder.txt cannot be read: not a file"),
    ("--config.data.files={}/latin.txt", "{}/latin.txt:2: not UTF-8"),
    ("--config.data.files={}/torn.jsonl.gz", "{}/torn.jsonl.gz cannot be read: Not a gzipped file"),
    ("--config.data.files={}/torn.parquet", "{}/torn.parquet cannot be read: "),
    ("--config.data.files={}/field.jsonl", "{}/field.jsonl:3: no field 'text': it has body", "data.bad_lines=0"),
    ("--config.data.field=body", "{}/good.jsonl:1: no field 'body': it has text"),
    ("--config.data.files={}/json.jsonl", "{}/json.jsonl:2: ", "data.bad_lines=0"),
    (
        "--config.data.files={}/short.txt --config.data.validation_fraction=0.0",
        "3 records",
        "a batch of 4",
        "more text",
    ),
    (
        "--config.data.files={}/shorter.txt --config.data.validation_fraction=0.0",
        "8 tokens in 1 documents",
        "fewer than one record of 17",
        "give more text",
    ),
    ("--config.data.source=tfds", "data.source=tfds needs data.name"),
    ("--config.data.tokenizer=gpt2", "data.tokenizer=gpt2 is missing", "give bytes, or the path of a tokenizer"),
    ("--config.data.tokenizer={}/good.jsonl", "{}/good.jsonl is no tokenizer", "expected a .json", "or .model"),
    ("--config.data.tokenizer={}/object.json", "data.tokenizer={}/object.json is no tokenizer"),
    ("--config.data.tokenizer={}/broken.json", "data.tokenizer={}/broken.json is no tokenizer"),
    ("--config.data.tokenizer={}/broken.model", "data.tokenizer={}/broken.model is no tokenizer"),
    ("--config.data.cache_dir={}/good.jsonl/cache", "data.cache_dir={}/good.jsonl/cache cannot be written"),
    ("--workdir={}/good.jsonl/run", "the workdir {}/good.jsonl/run can't be made: Not a directory"),
    ("--workdir={}/good.jsonl", "the workdir {}/good.jsonl can't be made: File exists"),
    ("--workdir=", "--workdir is missing", "--workdir=runs/first"),
    (
        "--config={}/missing.py",
        "there is no file {}/missing.py, which --config names",
        "--config=configs/quickstart.py",
    ),
    ("--config={}/syntax.py", "{}/syntax.py fails: SyntaxError: ", "line 1"),
    ("--config={}/raises.py", "{}/raises.py fails: ZeroDivisionError: "),
    ("--config={}/typo.py", "unknown config key model.widht", "did you mean model.width?"),
    ("--config={}/type.py", "{}/type.py", "'width'", "<class 'int'>"),
    ("--config={}/empty.py", "{}/empty.py fails: ", "NoneType"),
    (f"--config={TINY}:size=big", "tiny.py:size=big", "takes 0 positional arguments but 1 was given"),
    (f"--config={ROOT}/configs/wesar.py:sise=130m", "config argument 'sise'", "did you mean size?"),
    (f"--config={ROOT}/configs/wesar.py:size=7b", "config argument size='7b'", "one of: 130m, 1.3b, 13b"),
    ("--vocabulary=big", "--vocabulary=big", "int()"),
    ("--wrokdir=runs/first", "'wrokdir'", "Did you mean: workdir"),
    ("trian", "unknown command 'trian'", "did you mean train?"),
    ("data", "unknown command 'data'", "data tokenizer, data prepare"),
    ("compare --methods=small, wesar", "compare takes no 'wesar'", "commas and no spaces"),
    ("describe --replay=6", "--replay means nothing to describe: it is a flag of diagnose"),
]


@pytest.mark.parametrize(
    ("arguments", "told"), [(first, rest) for first, *rest in BAD_VALUES], ids=[row[0] for row in BAD_VALUES]
)
def test_a_mistake_gets_one_line_and_the_workdir_is_not_taken(arguments, told, place, capsys):
    line = refused(command(place, *shlex.split(arguments)), capsys)
    for fragment in told:
        assert fragment.replace("{}", str(place)) in line
    assert not (place / "run" / "config.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "--config.mesh.fsdp=99",
        "--config.mesh.fsdp=8",
        "--config.optimizer.warmup=99",
        "--config.model.vocabulary=100",
        "--config.eval.sample_length=9 --config.eval.sample_prompt='Once upon a time'",
        "--config.reparam.method=mlra --config.reparam.mlra.rank=99",
        "--config.model.qk_norm --config.optimizer.projection.method=qk_clip",
        "--config.model.tie_embeddings --config.reparam.method=mlra --config.reparam.mlra.roles=embed_tokens",
    ],
)
def test_what_does_not_fit_together_is_told_before_tokenising(arguments, place, tmp_path, capsys):
    refused(command(place, *shlex.split(arguments), f"--config.data.cache_dir={tmp_path}/cache"), capsys)
    assert not (tmp_path / "cache").exists()


def test_options_of_other_methods_are_welcome_in_a_config_file(place, tmp_path, capsys):
    file = tmp_path / "prepared.py"
    lines = "config.reparam.wesar.sigma = 1.0", "config.data.source, config.model.width = 'stdlib', 24"
    file.write_text(GET_CONFIG.format("\n    ".join(lines)))
    assert main.main(["main.py", "describe", f"--config={file}"]) == 0
    assert "layers/mlp/up_proj/kernel" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--config", "--workdir"])
def test_what_is_missing_is_named(flag, place, capsys):
    argv = [argument for argument in command(place) if not argument.startswith(flag)]
    assert refused(argv, capsys).startswith(f"error: {flag} is missing: for instance {flag}=")


def test_a_config_file_that_returns_nothing_is_named(place, capsys):
    assert "get_config" in refused(["main.py", f"--config={place}/empty.py"], capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_workdir_without_permission_is_refused_before_tokenising(place, tmp_path, capsys):
    (tmp_path / "run").mkdir(mode=0o500)
    line = refused(command(place, f"--workdir={tmp_path}/run", f"--config.data.cache_dir={tmp_path}/cache"), capsys)
    assert f"{tmp_path}/run can't be written" in line
    assert not (tmp_path / "cache").exists()


def test_a_workdir_that_cannot_be_made_is_refused_before_tokenising(place, tmp_path, capsys):
    refused(command(place, "--workdir={}/good.jsonl/run", f"--config.data.cache_dir={tmp_path}/cache"), capsys)
    assert not (tmp_path / "cache").exists()


def test_help_tells_the_commands_and_flags(capsys):
    with pytest.raises(SystemExit) as left:
        main.main(["main.py", "--help"])
    assert left.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for told in (*main.COMMANDS, "docs/configuration.md"):
        assert told in captured.out


def test_help_of_a_command_tells_its_flags_alone(capsys):
    with pytest.raises(SystemExit):
        main.main(["main.py", "tev", "--help"])
    told = capsys.readouterr().out
    assert "--out: " in told and "--workdir: " not in told


def test_debug_raises(place):
    with pytest.raises(ConfigError, match=r"did you mean model\.width\?"):
        main.main([*command(place, "--config.model.widht=64"), "--debug"])


def start(*arguments):
    """`python main.py ...`, in another process."""
    script = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_from_the_shell_a_mistake_gets_one_line_and_help_and_debug_get_more(place, tmp_path):
    arguments = command(
        place,
        "--config.data.files={}/*.jsonl,{}/field.jsonl",  # two files: tokenised by two processes, one of which fails
        "--config.data.workers=2",
        f"--config.data.cache_dir={tmp_path}",
    )[1:]
    (place / "empty.jsonl").unlink()
    processes = [start(*arguments), start(*arguments, "--config.model.widht=64", "--debug"), start("--help")]
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [1, 1, 0]
    (_, mistake), (_, debug), (usage, nothing) = told
    assert only_line(mistake).startswith(f"error: {place}/field.jsonl:3: no field 'text': it has body")
    assert debug.startswith("Traceback") and "ConfigError: unknown config key model.widht" in debug
    assert "--workdir: Where the run is kept." in usage and not nothing
