"""Checkpoints: exact, checked, and there again after a kill at any moment."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab.config import ConfigError, UserError
from jaxstab.train.checkpoint import CheckpointConfig, Checkpoints
from jaxstab.train.digests import digests

ROOT = Path(__file__).parents[2]
META = {"position": 640, "config": {"lr": 1e-3, "betas": (0.9, 0.95)}, "tokenizer": "sha256:ab"}


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    key: jax.Array
    skipped: jax.Array


@jax.jit
def make_state(step):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (3, 32, 40))
    params = {"wide": noise, "half": noise[0].astype(jnp.bfloat16), "gate": noise[:, 0, 0]}
    opt_state = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(params)
    return State(step, params, opt_state, jax.random.key(step), noise[0, 0] > 0)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_equal(left, right):
    def raw(leaf):
        typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if typed else leaf)

    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(raw(a), raw(b))


STATES = {step: make_state(step) for step in range(1, 7)}
ABSTRACT = abstract(STATES[1])


def save(directory, steps, **config):
    with Checkpoints(directory, CheckpointConfig(every=1, **config)) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, STATES[step], META)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pristine")
    save(directory, [1, 2, 3], keep_last=3)
    return directory


@pytest.fixture
def saved(pristine, tmp_path):
    """A directory with intact checkpoints of steps 1, 2 and 3."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoints"))


@pytest.fixture
def opened(saved):
    warnings = []
    with Checkpoints(saved, CheckpointConfig(every=1, keep_last=3), warnings.append) as checkpoints:
        checkpoints.warnings = warnings
        yield checkpoints


def test_what_is_saved_comes_back_with_its_meta(opened):
    step, state, meta = opened.restore_latest(ABSTRACT)
    assert step == 3
    assert_equal(state, STATES[3])
    versions = meta.pop("versions")
    assert meta == json.loads(json.dumps(META))
    assert versions["jax"] == jax.__version__ and versions["optax"] == optax.__version__
    assert versions.keys() == {"python", "jaxstab", "jax", "flax", "optax", "orbax-checkpoint", "numpy"}
    assert_equal(opened.restore(1, ABSTRACT)[0], STATES[1])
    assert opened.warnings == []


def test_a_new_run_has_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path / "new" / "checkpoints", CheckpointConfig()) as checkpoints:
        assert checkpoints.restore_latest(ABSTRACT) is None
        with pytest.raises(UserError, match=r"no checkpoint of step 5 in .*; there is: none"):
            checkpoints.restore(5, ABSTRACT)


def test_saves_are_made_when_due_when_forced_and_once(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(every=2)) as checkpoints:
        assert not checkpoints.save(1, STATES[1], META)
        assert checkpoints.save(2, STATES[2], META)
        assert not checkpoints.save(2, STATES[2], META, force=True)
        assert checkpoints.save(3, STATES[3], META, force=True)
        assert checkpoints.steps() == [2, 3]
    assert not Checkpoints(tmp_path, CheckpointConfig(every=0)).due(4)


def test_the_last_and_every_nth_are_kept(tmp_path):
    save(tmp_path, range(1, 7), keep_last=2, keep_every=3)
    assert sorted(os.listdir(tmp_path)) == ["3", "5", "6"]


def test_a_donated_state_was_saved_before_it_changed(tmp_path):
    advance = jax.jit(lambda state: jax.tree.map(lambda x: x * 2, state), donate_argnums=0)
    state = {"w": jnp.arange(300_000, dtype=jnp.float32)}
    with Checkpoints(tmp_path, CheckpointConfig(every=1)) as checkpoints:
        checkpoints.save(1, state, {})
        state = advance(advance(state))
        checkpoints.wait()
        restored, _ = checkpoints.restore(1, abstract(state))
    np.testing.assert_array_equal(restored["w"], np.arange(300_000, dtype=np.float32))


def largest(step_directory):
    return max((path for path in step_directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(step_directory):
    path = largest(step_directory)
    os.truncate(path, path.stat().st_size // 2)


def zero_a_block(step_directory):
    with largest(step_directory).open("r+b") as file:
        file.seek(4096)
        file.write(bytes(512))


def delete_manifest(step_directory):
    (step_directory / "state" / "manifest.ocdbt").unlink()


def empty(step_directory):
    shutil.rmtree(step_directory)
    step_directory.mkdir()


def delete_record(step_directory):
    shutil.rmtree(step_directory / "record")


def edit_record(old, new):
    def edit(step_directory):
        path = step_directory / "record" / "metadata"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return edit


DAMAGES = {
    "truncated file": truncate,
    "zeroed block": zero_a_block,
    "deleted file": lambda step_directory: largest(step_directory).unlink(),
    "deleted manifest": delete_manifest,
    "empty directory": empty,
    "deleted record": delete_record,
    "record that is no JSON": edit_record("{", "["),
    "record with another position": edit_record("640", "641"),
    "record with another digest": edit_record(digests(STATES[3])["params/wide"], "0" * 16),
    "record that is too deep": edit_record("{", '{"x": ' * 50_000),
    "another step under its name": lambda step_directory: (
        shutil.rmtree(step_directory),
        shutil.copytree(step_directory.parent / "2", step_directory),
    ),
    "values of another step": lambda step_directory: (
        shutil.rmtree(step_directory / "state"),
        shutil.copytree(step_directory.parent / "2" / "state", step_directory / "state"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_newest_is_named_and_the_one_before_it_is_used(opened, saved, damage):
    damage(saved / "3")
    with pytest.raises(UserError, match=r"checkpoint 3 in .* is damaged"):
        opened.restore(3, ABSTRACT)
    step, state, _ = opened.restore_latest(ABSTRACT)
    assert step == 2
    assert_equal(state, STATES[2])
    (warning,) = opened.warnings
    assert warning.startswith("checkpoint 3 is damaged (") and "moved to 3.damaged" in warning
    assert "\n" not in warning and "tensorstore_spec" not in warning and len(warning) < 350
    assert opened.steps() == [1, 2] and (saved / "3.damaged").is_dir()
    assert opened.save(3, STATES[3], META)
    opened.wait()
    assert_equal(opened.restore_latest(ABSTRACT)[1], STATES[3])


def test_a_step_damaged_twice_replaces_the_one_set_aside(opened, saved):
    for _ in range(2):
        truncate(saved / "3")
        assert opened.restore_latest(ABSTRACT)[0] == 2
        opened.save(3, STATES[3], META)
        opened.wait()
    assert sorted(os.listdir(saved)) == ["1", "2", "3", "3.damaged"]


def test_where_all_are_damaged_all_are_named_and_none_is_touched(opened, saved):
    for step in (1, 2, 3):
        truncate(saved / str(step))
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged: 3 \(.*\); 2 \(.*\); 1 \("):
        opened.restore_latest(ABSTRACT)
    assert opened.steps() == [1, 2, 3]


def test_no_flipped_bit_goes_unnoticed(opened, saved):
    dice = random.Random(0)
    files = [path for path in (saved / "3").rglob("*") if path.is_file()]
    biggest = largest(saved / "3")
    noticed = 0
    for trial in range(120):
        path = biggest if trial % 3 else dice.choice(files)
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            state, meta = opened.restore(3, ABSTRACT)
        except UserError as error:
            assert "is damaged" in str(error)
            noticed += 1
        else:
            assert_equal(state, STATES[3])
            assert meta["position"] == 640
        path.write_bytes(whole)
    assert noticed > 60
    assert_equal(opened.restore(3, ABSTRACT)[0], STATES[3])


def test_another_model_is_not_damage(opened, saved):
    wide = ABSTRACT.params["wide"]

    def other(**params):
        return ABSTRACT.replace(params={**ABSTRACT.params, **params})

    def like(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=wide.sharding)

    for wanted, message in {
        r"params/wide is float32\[3, 32, 40\] there and float32\[3, 32, 48\] here": like((3, 32, 48), jnp.float32),
        r"params/wide is float32\[3, 32, 40\] there and bfloat16\[3, 32, 40\] here": like(wide.shape, jnp.bfloat16),
    }.items():
        with pytest.raises(UserError, match=wanted):
            opened.restore_latest(other(wide=message))
    with pytest.raises(UserError, match="params/new is missing there"):
        opened.restore_latest(other(new=wide))
    with pytest.raises(UserError, match="step is unknown here"):
        opened.restore_latest(ABSTRACT.replace(step=None))
    assert opened.warnings == [] and opened.steps() == [1, 2, 3]


def test_digests_see_every_change():
    values = jax.random.normal(jax.random.key(0), (7, 33))

    def digest(array):
        return digests([array])["0"]

    whole = digest(values)
    dice = random.Random(0)
    for _ in range(50):
        words = np.array(values).view(np.uint32)
        words.flat[dice.randrange(words.size)] ^= np.uint32(1 << dice.randrange(32))
        assert digest(jnp.asarray(words.view(np.float32))) != whole
    changed = {
        "swapped": values.at[0, 0].set(values[5, 8]).at[5, 8].set(values[0, 0]),
        "rows swapped": values[jnp.array([1, 0, 2, 3, 4, 5, 6])],
        "zeroed": values.at[2:4].set(0),
        "transposed": values.T,
        "minus zero": (values * 0).at[0, 0].set(-0.0),
        "zero": values * 0,
    }
    assert len({digest(array) for array in changed.values()} | {whole}) == len(changed) + 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool"])
def test_every_dtype_is_saved_and_checked(tmp_path, dtype):
    state = {"x": jnp.arange(-6, 6).astype(dtype), "scalar": jnp.ones((), dtype)}
    with Checkpoints(tmp_path, CheckpointConfig(every=1)) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        assert_equal(checkpoints.restore(1, abstract(state))[0], state)
    assert digests(state)["x"] != digests({"x": state["x"].at[3].set(jnp.zeros((), dtype))})["x"]


def test_a_save_that_fails_in_the_background_does_not_pass_silently(tmp_path, monkeypatch):
    def disk_full(*_):
        raise OSError(28, "No space left on device")

    save(tmp_path, [1])
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every=1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", disk_full)
        checkpoints.save(2, STATES[2], META)
        with pytest.raises(UserError, match=f"checkpoint 2 could not be written to {tmp_path}: .*No space left"):
            checkpoints.wait()
        checkpoints.save(3, STATES[3], META)
        with pytest.raises(UserError, match="checkpoint 3 could not be written"):
            checkpoints.save(4, STATES[4], META)
    assert checkpoints.steps() == [1]
    assert checkpoints.save(4, STATES[4], META)
    checkpoints.close()
    with Checkpoints(tmp_path, CheckpointConfig(every=1)) as checkpoints:
        assert checkpoints.restore_latest(ABSTRACT)[0] == 4
        checkpoints.save(5, STATES[5], META)
    assert sorted(os.listdir(tmp_path)) == ["4", "5"], "what the failed saves left is gone"


def test_the_reason_of_a_failed_save_is_told_to_its_end(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every=1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        checkpoints.save(1, STATES[1], META)
        with pytest.raises(UserError, match=r"^checkpoint 1 could not be written to .*: File too large$") as error:
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_bad_configurations_and_directories_get_one_line(tmp_path):
    for key, value, least in (("every", -1, 0), ("keep_last", 0, 1), ("keep_every", -1, 0)):
        with pytest.raises(ConfigError, match=f"{key}={value} must be at least {least}"):
            CheckpointConfig(**{key: value})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="checkpoints cannot be kept in"):
        Checkpoints(tmp_path / "file" / "checkpoints", CheckpointConfig())


def child(script, *arguments, devices=1):
    """Runs a script in a Python of its own, with as many devices as told."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


PRELUDE = """
    import os, sys, threading, time
    import jax, jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from jaxstab.train.checkpoint import CheckpointConfig, Checkpoints
    from jaxstab.train.digests import digests

    def make(step):
        w = jax.random.normal(jax.random.key(step), (16, 64))
        return {"w": w, "half": w.astype(jnp.bfloat16), "key": jax.random.key(step), "step": jnp.int32(step)}
"""

SHARDED = """
    mesh = jax.make_mesh((jax.device_count() // min(2, jax.device_count()), min(2, jax.device_count())), ("a", "b"),
                         axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = {"w": P("a", "b"), "half": P(None, ("a", "b")), "key": P(), "step": P()}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    state = jax.device_put(make(1), shardings)
    with Checkpoints(sys.argv[1], CheckpointConfig(every=1)) as checkpoints:
        if sys.argv[2] == "save":
            checkpoints.save(1, state, {})
        else:
            wanted = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[n]) for n, x in state.items()}
            _, state, _ = checkpoints.restore_latest(wanted)
            assert state["w"].sharding == shardings["w"]
            assert (state["w"] == make(1)["w"]).all() and (state["half"] == make(1)["half"]).all()
    print(len(state["w"].addressable_shards), digests(state))
"""


def test_another_mesh_restores_it_with_the_same_digests(tmp_path):
    told = {}
    for devices in (1, 8):
        told["saved", devices] = child(SHARDED, tmp_path / str(devices), "save", devices=devices)
    told = {key: process.communicate(timeout=120)[0] for key, process in told.items()}
    running = {8: child(SHARDED, tmp_path / "1", "restore", devices=8), 1: child(SHARDED, tmp_path / "8", "restore")}
    for devices, process in running.items():
        told["restored", devices] = process.communicate(timeout=120)[0]
        assert process.returncode == 0
    shards, values = zip(*(line.split(" ", 1) for line in told.values()), strict=True)
    assert list(shards) == ["1", "8", "8", "1"]
    assert len(set(values)) == 1


SAVING = """
    def hang(*told):
        print("hanging", *told, flush=True)
        time.sleep(600)

    def rename(source, target, *, real=os.rename, **options):
        if sys.argv[2] == "commit" and str(target).endswith("/3"):
            hang()
        real(source, target, **options)

    def unlink(path, *, real=os.unlink, **options):
        files = sum(len(names) for *_, names in os.walk(f"{sys.argv[1]}/1"))  # two checkpoints may differ by one
        real(path, **options)
        if sys.argv[2] == "deletion":
            hang(files)

    os.rename, os.unlink = rename, unlink
    checkpoints = Checkpoints(sys.argv[1], CheckpointConfig(every=1, keep_last=2))
    for step in (1, 2, 3):
        checkpoints.save(step, make(step), {"position": step})
        checkpoints.wait()
"""

RESTORING = """
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make(1))
    with Checkpoints(sys.argv[1], CheckpointConfig(every=1, keep_last=2)) as checkpoints:
        step, state, meta = checkpoints.restore_latest(wanted)
        assert meta["position"] == step and digests(state) == digests(make(step))
        print(step)
        for later in (step + 1, step + 2):
            checkpoints.save(later, make(later), {"position": later})
"""


def kill(process):
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL


def resumed_at(directory):
    process = child(RESTORING, directory)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return int(output)


def test_killed_in_a_save_the_next_start_finds_the_one_before(tmp_path):
    process = child(SAVING, tmp_path, "commit")
    assert process.stdout.readline() == "hanging\n"
    kill(process)
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "3.orbax-checkpoint-tmp"]
    assert largest(tmp_path / "3.orbax-checkpoint-tmp").stat().st_size > 1000
    assert resumed_at(tmp_path) == 2
    assert sorted(os.listdir(tmp_path)) == ["3", "4"]


def test_killed_in_a_deletion_the_next_start_finds_the_newest(tmp_path):
    process = child(SAVING, tmp_path, "deletion")
    told, files = process.stdout.readline().split()
    assert told == "hanging"
    kill(process)
    left = [path for path in (tmp_path / "1").rglob("*") if path.is_file()]
    assert 0 < len(left) < int(files), "the kill landed in a deletion half done"
    assert resumed_at(tmp_path) == 3
    assert sorted(os.listdir(tmp_path)) == ["4", "5"]


ENDLESS = """
    checkpoints = Checkpoints(sys.argv[1], CheckpointConfig(every=1, keep_last=2))
    for step in range(1, 100_000):
        checkpoints.save(step, make(step), {"position": step})
        print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_next_start_finds_a_good_one(tmp_path):
    dice = random.Random(1)
    for trial in range(3):
        directory = tmp_path / str(trial)
        process = child(ENDLESS, directory)
        started = [process.stdout.readline() for _ in range(3)]
        time.sleep(dice.uniform(0, 0.5))
        kill(process)
        started = int([*started, *process.stdout][-1])
        assert started - 1 <= resumed_at(directory) <= started + 1
