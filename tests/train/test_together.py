"""Cells that share a program and run as one come to what they come to alone; a trial decides whether they do."""

import json
import os
import re
import runpy
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

import main
from configs.methods import METHODS
from jaxstab.compare import ahead, lockstep, programs, read_grid, together
from jaxstab.compare.cells import RESULT, directory_of, row_of, run_cell
from jaxstab.compare.statistics import Estimate
from jaxstab.config import UserError
from jaxstab.logging import read_measurements, read_metrics
from jaxstab.train import workdir as workdirs
from jaxstab.train.config import resolve
from jaxstab.train.signals import Stopped

TINY = Path(__file__).with_name("tiny.py")
STEPS = 8
FLOAT32 = 2e-6  # relative, of a loss: vectorised products add up in another order; measured, at most 1.4e-7
# Where the rate is too high rounding grows from step to step: WeSaR's at 0.01 to 1.9e-4 after eight.
TOO_HIGH, GROWN, SOON = ("wesar", 0.01), 1e-3, 3
SAMPLE = ahead.Sample(compiling=0.0, step=1.0, memory=1)
KEYS = {"reparam.method": "identity", "log.tensorboard_every": 0, "stability.measure": "off"}


def grid(tiny, methods=("small",), rates=("1e-3", "1e-2"), seeds=("1",), vary=(), **keys):
    """The cells of a grid on the tiny config."""
    values = runpy.run_path(str(TINY))["get_config"]()
    data = {"data.files": (f"{tiny.corpus}/*.jsonl",), "data.cache_dir": f"{tiny.corpus}/cache"}
    values.update_from_flattened_dict({**data, **KEYS, **keys})
    return read_grid(resolve(values), METHODS, list(methods), list(rates), list(seeds), list(vary)).cells


@pytest.fixture(scope="module")
def joint_of():
    """Joint steps, which tests of one program share, since each takes long to compile."""
    joints = {}

    def shared(program, size):
        key = program.step, size
        if key not in joints:
            joints[key] = lockstep.joint_step(program, size)
        return joints[key]

    return shared


@pytest.fixture
def at_once(tmp_path, joint_of):
    """Runs cells together in tmp_path, whatever a trial would say; `told` has the lines."""
    built, told = programs.Programs(), []

    def run(cells, before=lambda: None):
        joint = joint_of(ahead.program_of(cells[0].config, built), len(cells))

        def step(*given):
            before()
            return joint(*given)

        return together.run_together(tmp_path, cells, built, together.Choice(len(cells), step, 0.1), told.append)

    run.told = told
    return run


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """The workdir in which cells ran one by one."""
    workdir, built = tmp_path_factory.mktemp("alone"), programs.Programs()

    def run(cells):
        for cell in cells:
            if row_of(workdir, cell) is None:
                run_cell(workdir, cell, built)
        return workdir

    return run


def assert_same_runs(workdir, other, cells):
    """Asserts that cells ended alike in two comparisons, within rounding, and left the same files and metrics."""
    for cell in cells:
        own, reference = (directory_of(each, cell.name) for each in (workdir, other))
        lines, wanted = (read_metrics(each / "metrics.jsonl") for each in (own, reference))
        rate_too_high = (cell.method, cell.learning_rate) == TOO_HIGH
        assert [line.keys() for line in lines] == [line.keys() for line in wanted]
        for line, want in zip(lines, wanted, strict=True):
            for name in ("step", "train/position", "train/batch_digest", "train/learning_rate", "train/skipped"):
                assert line.get(name) == want.get(name), name
            for name in ("train/loss", "eval/validation/loss"):
                rounding = GROWN if rate_too_high and line["step"] > SOON else FLOAT32
                np.testing.assert_allclose(line.get(name, 0), want.get(name, 0), rtol=rounding, err_msg=cell.name)
        row, wanted_row = row_of(workdir, cell), row_of(other, cell)
        assert row.keys() == wanted_row.keys()
        assert {each.name for each in own.iterdir()} == {each.name for each in reference.iterdir()}
        assert (own / "config.json").read_text() == (reference / "config.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "measure"), [("small", "light"), ("wesar", "off")])
def test_runs_together_come_to_what_they_come_to_alone(tiny, tmp_path, at_once, alone, method, measure):
    """Over rates, seeds and decay, under a guard that leaves spikes out."""
    keys = {"stability.on_spike": "skip", "stability.measure": measure}
    cells = grid(tiny, [method], seeds=["1", "2"], vary=["optimizer.weight_decay=0,0.3"], **keys)
    cells = [cells[place] for place in (0, 3, 5, 6)]  # all pairs of values of two of the three
    rows = at_once(cells)
    assert list(rows) == [cell.name for cell in cells] and len({row["train_loss"] for row in rows.values()}) == 4
    workdir = alone(cells)
    assert_same_runs(tmp_path, workdir, cells)
    measured, wanted = (read_measurements(directory_of(each, cells[3].name)) for each in (tmp_path, workdir))
    assert measured.keys() == wanted.keys() and bool(measured) == (measure == "light")


@pytest.mark.slow
def test_a_run_that_diverges_or_is_another_processs_leaves_the_others_to_go_on(tiny, tmp_path, at_once, alone):
    cells = grid(tiny, rates=["1e-3", "1e30", "1e-2", "3e-3"])
    busy = directory_of(tmp_path, cells[3].name)
    busy.mkdir(parents=True)
    with workdirs.alone(busy):
        rows = at_once(cells)
    assert rows[cells[3].name] is None and not (busy / RESULT).exists()
    diverged = rows[cells[1].name]
    assert diverged["diverged"] and diverged["stopped"].startswith("the loss, a gradient or the update was not finite")
    assert diverged["steps"] < STEPS and not rows[cells[0].name]["diverged"]
    assert_same_runs(tmp_path, alone(cells[:3]), cells[:3])


@pytest.mark.slow
def test_a_signal_stops_all_and_they_go_on_from_their_checkpoints(tiny, tmp_path, at_once, alone):
    cells, steps = grid(tiny, rates=["1e-3", "2e-3", "1e-2", "3e-3"]), []

    def stop_at_third():
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match=r"stopped by SIGINT after step [345], which is saved"):
        at_once(cells, stop_at_third)
    assert not list(tmp_path.glob(f"cells/*/{RESULT}"))
    assert len(list(tmp_path.glob("cells/*/checkpoints/[345]"))) >= 4
    assert list(at_once(cells)) == [cell.name for cell in cells]
    assert_same_runs(tmp_path, alone(cells), cells)
    assert at_once(cells) == {}  # those that are done are left alone


@pytest.mark.slow
def test_where_the_device_fails_in_the_step_of_all_each_goes_on_alone(tiny, tmp_path, at_once, alone):
    cells, steps = grid(tiny, rates=["1e-3", "2e-3", "1e-2", "3e-3"]), []

    def fail_at_fifth():
        steps.append(1)
        if len(steps) == 5:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory\nand much more")

    assert at_once(cells, fail_at_fifth) == {}
    assert at_once.told == [f"{cell.name} goes on alone: RESOURCE_EXHAUSTED: no memory" for cell in cells]
    run_cell(tmp_path, cells[0])
    assert_same_runs(tmp_path, alone(cells[:1]), cells[:1])


def test_what_no_run_can_be_trained_on_is_told_of_each(tiny, at_once):
    cells = grid(tiny, rates=["1e-3", "2e-3", "1e-2", "3e-3"], **{"data.files": ("nothing.jsonl",)})
    outcomes = at_once(cells)
    assert list(outcomes) == [cell.name for cell in cells]
    assert all(isinstance(each, UserError) and "nothing.jsonl" in str(each) for each in outcomes.values())


@pytest.mark.slow
def test_one_that_cannot_be_run_leaves_the_others_to_go_on(tiny, tmp_path, at_once, alone):
    cells = grid(tiny, rates=["1e-3", "2e-3", "1e-2", "3e-3"])
    damaged = directory_of(tmp_path, cells[1].name)
    damaged.mkdir(parents=True)
    (damaged / "config.json").write_text("{")
    outcomes = at_once(cells)
    assert isinstance(outcomes.pop(cells[1].name), UserError) and not (damaged / RESULT).exists()
    assert list(outcomes) == [cells[place].name for place in (0, 2, 3)]
    assert_same_runs(tmp_path, alone([cells[0], *cells[2:]]), [cells[0], *cells[2:]])


def test_a_signal_is_heard_where_another_run_cannot_be_made():
    with pytest.raises(Stopped):
        together._rows({"one": UserError("no data"), "two": Stopped(signal.SIGINT, 3)}, print)


@pytest.mark.slow
def test_a_grid_runs_groups_together_where_the_trial_says_so(tiny, tmp_path, monkeypatch, capsys, joint_of):
    times = iter([_times(0.3, 1.0), _times(1.1, 1.0)])
    monkeypatch.setattr(together, "PAYS", 0)
    monkeypatch.setattr(together, "joint_step", joint_of)
    monkeypatch.setattr(ahead, "in_turns", lambda *given: next(times))
    keys = [f"--config.{key}={value}" for key, value in KEYS.items()]
    rates = "--learning_rates=1e-3,1e-2,2e-3,1e30"
    program, *rest = tiny.command(tmp_path / "grid", "--methods=small", rates, "--seeds=1", *keys)
    assert main.main([program, "compare", *rest]) == 0
    rows = [json.loads(line) for line in (tmp_path / "grid" / "results.jsonl").read_text().splitlines()]
    assert [row["diverged"] for row in rows] == [False, False, False, True]
    printed = " ".join(capsys.readouterr().out.split())
    assert "a step of 4 runs as one program takes 0.30 [0.29, 0.31] of the time of 4 steps" in printed
    assert re.search(
        r"they run together.* 1/4 small-0.001-seed1: loss [\d.]+ .*4/4 small-1e\+30-seed1: diverged", printed
    )


def _times(ratio, control):
    around = [Estimate(each, each - 0.01, each + 0.01, 3) for each in (ratio, control)]
    return ahead.StepTime(*around, seconds=0.1)


@pytest.mark.parametrize(
    ("ratio", "outcome"),
    [(0.3, "together"), (0.985, "one after the other"), (1.4, "one after the other")],  # the second is within noise
)
def test_a_trial_decides_by_more_than_its_noise_and_is_told(tiny, monkeypatch, ratio, outcome):
    told, tried = [], []
    monkeypatch.setattr(ahead, "in_turns", lambda *given: tried.append(given) or _times(ratio, 1.0))
    trials, cells = together.Trials(programs.Programs(), told.append), grid(tiny)
    choice = trials.choose(cells, SAMPLE)
    assert (choice is not None) == (outcome == "together") and told[0].endswith(f"they run {outcome}")
    assert choice is None or (choice.at_once, choice.ratio) == (2, ratio)
    trials.choose(cells, SAMPLE)
    assert len(tried) == (2 if choice else 1)  # once it isn't faster, nothing is tried again


def test_a_trial_is_made_only_where_it_is_short_beside_the_runs(tiny, monkeypatch):
    monkeypatch.setattr(ahead, "in_turns", lambda *given: pytest.fail("a trial"))
    trials, cells = together.Trials(programs.Programs(), print), grid(tiny)
    assert trials.choose(cells, ahead.Sample(compiling=9.0, step=5.0, memory=1)) is None  # 16 steps of 5 s
    assert trials.choose(cells[:1], SAMPLE) is None


def test_as_many_runs_go_together_as_memory_has_room_for(tiny, monkeypatch):
    told, tried = [], []

    def timed(stepper, baseline, steps):
        tried.append(stepper)
        if len(tried) == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory\nand much more")
        return _times(0.3, 1.0)

    cells, built = grid(tiny, rates=["1e-3", "2e-3", "3e-3", "4e-3", "5e-3", "6e-3"]), programs.Programs()
    program = ahead.program_of(cells[0].config, built)
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.abstract_state))
    monkeypatch.setattr(ahead, "in_turns", timed)
    monkeypatch.setattr(together, "_memory", lambda device: 5.5 * 3 * state / together.FILLED)
    choice = together.Trials(built, told.append).choose(cells, SAMPLE._replace(memory=state))
    assert choice.at_once == 2 and told[0] == "3 runs can't be taken as one program: RESOURCE_EXHAUSTED: no memory"


def test_groups_are_of_one_program_and_their_parts_as_large_as_each_other(tiny):
    cells = grid(tiny, ["small", "wesar"], seeds=["1", "2"], vary=["optimizer.weight_decay=0,0.3"])
    assert [len(group) for group in together.groups(cells)] == [8, 8]
    assert [len(part) for part in together.parts(cells, 7)] == [5, 5, 6]
    assert [cell for part in together.parts(cells, 7) for cell in part] == list(cells)
    assert [len(part) for part in together.parts(cells, 1)] == [1] * 16


class Counters:
    """Runs whose state is a number, of which a step adds to it and says with how many it was taken."""

    def __init__(self, places, ratio, members):
        self.joint_steps = []
        self.lockstep = lockstep.Lockstep(self.alone, self.joint, places, ratio, members)

    def alone(self, state, tokens, hypers):
        return state + hypers, 1

    def joint(self, states, tokens, hypers):
        self.joint_steps.append((len(states), len(tokens), len(hypers)))
        return tuple(map(np.add, states, hypers)), tuple(len(states) for _ in states)

    def run(self, lengths, steps):
        """By member, its last state and how each step was taken; a member has tokens of a length, and takes steps."""
        ends = {}

        def member(number):
            with self.lockstep.member(number) as stepping:
                step, state, taken = stepping(PROGRAM).step, np.zeros(()), []
                try:
                    for _ in range(steps[number]):
                        state, how = step(state, np.zeros((1, lengths[number])), number + 1)
                        taken.append(how)
                except ZeroDivisionError:
                    taken.append("failed")
                ends[number] = float(state), taken

        threads = [threading.Thread(target=member, args=(number,), daemon=True) for number in range(len(steps))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return ends


PROGRAM = programs.Program(*[None] * 8)


def test_places_of_runs_that_left_are_filled_until_single_steps_are_faster():
    counters = Counters(places=4, ratio=0.4, members=3)  # 1.6 single steps take as long as a joint one
    ends = counters.run(lengths=[8, 8, 8], steps=[5, 2, 3])
    assert ends == {0: (5.0, [4, 4, 4, 1, 1]), 1: (4.0, [4, 4]), 2: (9.0, [4, 4, 4])}
    assert counters.joint_steps == [(4, 4, 4)] * 3


def test_runs_at_other_lengths_step_alone():
    assert Counters(2, 0.1, 2).run([8, 4], [2, 1]) == {0: (2.0, [1, 2]), 1: (2.0, [1])}


def test_an_error_of_the_joint_step_reaches_all():
    counters = Counters(2, 0.1, 2)
    counters.lockstep._joint = lambda *given: 1 / 0
    assert counters.run([8, 8], [1, 1]) == {0: (0.0, ["failed"]), 1: (0.0, ["failed"])}
