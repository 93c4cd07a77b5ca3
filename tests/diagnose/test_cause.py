"""A planted cause is named, with its place and step, by evidence that the run bears out; no cause, no alarm."""

from pathlib import Path

import numpy as np
import pytest

from jaxstab.diagnose import Cause, causes, diagnosed, find_causes, read_history
from jaxstab.diagnose.causes import CAUSES, ranked
from jaxstab.diagnose.history import Series


def cause_of(workdir):
    return find_causes(read_history(workdir))[0]


@pytest.mark.parametrize("seed", range(6))
def test_a_healthy_run_raises_no_alarm(fake, seed):
    assert cause_of(fake(seed=seed)).cause == "none"


@pytest.mark.parametrize(
    ("role", "layer", "step", "factor"),
    [
        ("q_proj", 0, 3, 0.7),
        ("down_proj", 4, 90, 0.05),
        ("k_proj", 1, 50, 0.97),
        ("o_proj", 3, 20, 1.03),
        ("v_proj", 2, 158, 40.0),
    ],
)
def test_a_scaled_matrix_is_found_by_its_norm(fake, role, layer, step, factor):
    cause = cause_of(fake(lambda run: run.scale(step, role, layer, factor), seed=step))
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_changed", role, layer, step)
    assert f"x{factor:.3g}" in cause.evidence[0]


def test_what_is_scaled_before_the_first_step_is_found_by_its_initial_scale(fake):
    cause = cause_of(fake(lambda run: run.scale(1, "up_proj", 2, 1.4)))
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_changed", "up_proj", 2, 1)
    cause = cause_of(fake(lambda run: run.scale(1, "up_proj", 2, 1.4), saved=False))
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_changed", "up_proj", 2, 1)


@pytest.mark.parametrize("step", [1, 70])
def test_a_matrix_that_was_zeroed(fake, step):
    history = read_history(fake())
    for measurement in ("norm", "norm_effective"):
        history.series[f"stability/{measurement}/v_proj"].values[step - 1 :, 2] = 0.0
    cause = find_causes(history)[0]
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_changed", "v_proj", 2, step)


def test_a_matrix_that_begins_at_zero_was_not_changed(fake):
    """A branch that starts at zero: no update ratio tells of its first steps."""
    history = read_history(fake(changes={"reparam__method": "rezero"}))
    history.series["stability/norm_effective/o_proj"].values[:2] = 0.0
    assert [each.cause for each in find_causes(history)] == ["none"]


def test_what_causes_explain_of_each_other():
    def at(cause, step, last=0, certainty="statistic", role=None):
        return Cause(cause, role, step=step, last=last or step, certainty=certainty, evidence=("so",))

    def names(*causes):
        return [(each.cause, each.step) for each in ranked(list(causes))]

    change, later = at("weights_changed", 80, certainty="identity"), at("attention_logits", 200, certainty="identity")
    echo, after, before = at("data", 140), at("data", 141), at("data", 60)
    assert names(later, change, echo) == [("weights_changed", 80), ("attention_logits", 200)]
    assert "data from step 140: so" in ranked([change, echo])[0].followed
    assert names(before, after, change) == [("weights_changed", 80), ("data", 60), ("data", 141)]
    embedding, start = at("embedding_scale", 1, certainty="identity"), at("weights_changed", 1, certainty="identity")
    assert names(start, change, embedding) == [("embedding_scale", 1), ("weights_changed", 80)]
    decay, rate = at("weight_decay", 20, certainty="bound"), at("learning_rate", 1)
    assert names(rate, decay) == [("weight_decay", 20), ("learning_rate", 1)], "what is surer comes first"
    diverged, of_one = at("nonfinite", 90, certainty="fact"), at("nonfinite", 50, certainty="fact", role="q_proj")
    assert names(diverged, rate) == [("learning_rate", 1)], "a rate explains what diverges after it"
    assert names(of_one, rate) == [("nonfinite", 50), ("learning_rate", 1)], "but no one matrix's NaN"
    assert names(diverged) == [("nonfinite", 90)]
    assert names(at("not_known", 100), decay) == [("weight_decay", 20)]
    assert ranked([]) == []


def test_a_change_within_its_update_is_no_alarm(fake):
    """Norms alone don't tell a change from outside from an update; sketches do (test_exact)."""
    assert cause_of(fake(lambda run: run.scale(90, "o_proj", 3, 1.02), rate=0.03)).cause == "none"


@pytest.mark.parametrize("length", [1, 3])
def test_the_gradient_of_one_matrix_alone(fake, length):
    history = read_history(fake())
    history.series["stability/grad_norm/up_proj"].values[79 : 79 + length, 3] *= 30
    cause = find_causes(history)[0]
    assert (cause.cause, cause.role, cause.layer) == ("gradient_corrupted", "up_proj", 3)
    assert (cause.step, cause.last) == (80, 79 + length)


def test_the_gradients_of_a_layer_or_of_all_matrices_are_not_corrupted(fake):
    history = read_history(fake())
    for role in ("q_proj", "k_proj", "up_proj"):
        history.series[f"stability/grad_norm/{role}"].values[79, 3] *= 30
    for name, series in history.series.items():
        if name.startswith("stability/grad_norm/"):
            series.values[120] *= 30
    assert find_causes(history)[0].cause == "none"


def test_output_logits_that_drift(fake):
    history = read_history(fake(changes={"train__z_loss": 0.0}))
    steps = history.scalar("train/loss")[0]
    history.series["train/log_z"] = Series(steps, np.linspace(0, 60, len(steps))[:, None])
    diagnosis = diagnosed(history)
    assert diagnosis.cause.cause == "output_logits" and 50 < diagnosis.cause.step < 60  # 5 log 64 = 20.8
    assert [each.keys for each in diagnosis.advice] == ["train.z_loss=0.0001"]
    history.series["train/log_z"] = Series(steps, np.full((len(steps), 1), 9.0))
    assert find_causes(history)[0].cause == "none"


def test_decay_that_is_too_strong(fake):
    """Stored norms fall as decay says; where they don't, decay is outweighed."""
    shrinking, calm = (read_history(fake(rate=0.01, changes={"optimizer__weight_decay": 3.0})) for _ in range(2))
    rates = shrinking.scalar("train/learning_rate")[1]
    for name, series in shrinking.series.items():
        if name.startswith("stability/norm"):
            series.values[:] *= np.exp(-np.cumsum(0.8 * 3.0 * rates))[:, None]
    diagnosis = diagnosed(shrinking)
    assert diagnosis.cause.cause == "weight_decay" and diagnosis.cause.certainty == "bound"
    assert [each.keys for each in diagnosis.advice] == ["optimizer.weight_decay=0.1"]
    assert find_causes(calm)[0].cause == "none"


def test_trouble_of_no_known_cause_says_what_moved_first(fake):
    def plant(run):
        run.loss[99:131] += 3 * np.sin(np.linspace(0, np.pi, 32))
        run.grad[99:131] *= 3

    history = read_history(fake(plant))
    history.series["stability/update_ratio/k_proj"].values[95:, 2] *= 40
    cause = find_causes(history)[0]
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("not_known", "k_proj", 2, 96)
    assert diagnosed(history).advice == ()


@pytest.mark.parametrize(("unigram", "ratio", "expected"), [(2.2, 0.05, True), (2.2, 0.0, False), (3.0, 0.05, False)])
def test_a_model_that_was_moved_far_and_learned_nothing(fake, unigram, ratio, expected):
    """Only both together: moved little, it has had no time; below the loss of frequencies, it learned."""
    history = read_history(fake())
    steps = history.scalar("train/loss")[0]
    history.series["train/unigram_loss"] = Series(steps, np.full((len(steps), 1), unigram))
    for name, series in history.series.items():
        if name.startswith("stability/update_ratio"):
            series.values[:] += ratio
    assert find_causes(history)[0].cause == ("learning_rate" if expected else "none")


def test_a_loss_that_rises_again_within_the_first_steps(fake):
    def plant(run):
        run.loss[4:9] = 12.0

    cause = cause_of(fake(plant))
    assert (cause.cause, cause.step) == ("learning_rate", 5)


def test_every_file_of_causes_is_registered():
    files = {path.stem for path in Path(causes.__file__).parent.glob("*.py")}
    assert files - {"__init__", "base"} == set(CAUSES) - {"none"}


def test_the_consequences_of_a_change_are_no_second_cause(fake):
    def plant(run):
        run.scale(80, "v_proj", 1, 20.0)
        run.loss[79:95] += 2
        run.grad[79:95] *= 10

    assert [each.cause for each in find_causes(read_history(fake(plant)))] == ["weights_changed"]


@pytest.mark.parametrize("step", [1, 60, 120])
def test_queries_and_keys_of_one_head(fake, step):
    layer, head, factor = 3, 2, 6.0
    grown = np.sqrt((3 + factor**2) / 4)

    def plant(run):
        run.scale(step, "q_proj", layer, grown).scale(step, "k_proj", layer, grown)
        run.logits[step - 1 :, layer, head] *= factor**2

    cause = cause_of(fake(plant))
    assert (cause.cause, cause.layer, cause.head, cause.step) == ("attention_logits", layer, head, step)


def test_logits_that_grow_without_a_jump(fake):
    def plant(run):
        run.logits[:, 1, 3] *= np.exp(np.linspace(0, 4, run.steps))

    cause = cause_of(fake(plant))
    assert (cause.cause, cause.layer, cause.head, cause.step) == ("attention_logits", 1, 3, 100)


@pytest.mark.parametrize("factor", [0.01, 0.5])
def test_an_embedding_that_began_too_small(fake, factor):
    cause = cause_of(fake(lambda run: run.scale(1, "embed_tokens", 0, factor)))
    assert (cause.cause, cause.role, cause.step) == ("embedding_scale", "embed_tokens", 1)


def test_an_embedding_scaled_later_is_a_scaled_matrix(fake):
    cause = cause_of(fake(lambda run: run.scale(70, "embed_tokens", 0, 0.1)))
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_changed", "embed_tokens", None, 70)


def test_matrices_that_grow_in_a_run_that_learns_are_no_alarm(fake):
    assert cause_of(fake(rate=0.2)).cause == "none"


def test_a_learning_rate_that_ends_the_run_at_once(fake):
    def plant(run):
        run.loss[2], run.grad[2] = np.nan, np.nan

    causes = find_causes(read_history(fake(plant, rate=30.0, steps=3)))
    assert [each.cause for each in causes] == ["learning_rate"]
    assert "nonfinite" in causes[0].followed[0]


def test_a_gradient_that_vanishes_stops_nobody(fake):
    def plant(run):
        run.loss[60:66] += 4
        run.grad[60:66] = 0.0

    assert cause_of(fake(plant)).cause == "data"


def test_a_loss_that_rises_for_good_without_measurements(fake):
    def plant(run):
        run.loss[80:] += np.linspace(0, 2, run.steps - 80)

    assert cause_of(fake(plant, measurements=False)).cause == "learning_rate"


@pytest.mark.parametrize(("step", "length", "jump"), [(40, 3, 1.5), (100, 12, 3.0), (120, 1, 4.0), (90, 8, -1.5)])
def test_a_stretch_of_odd_batches(fake, step, length, jump):
    def plant(run):
        run.loss[step - 1 : step - 1 + length] += jump
        run.grad[step - 1 : step - 1 + length] *= 4

    cause = cause_of(fake(plant))
    assert (cause.cause, cause.role, cause.step) == ("data", None, step)


def test_a_stretch_that_has_not_ended_says_so(fake):
    def plant(run):
        run.loss[99:] += 2

    cause = cause_of(fake(plant))
    assert (cause.cause, cause.step) == ("data", 100)
    assert "until step 160, where the run ends so far" in cause.evidence[-1]


def test_noise_of_single_batches_is_no_cause(fake):
    def plant(run):
        run.loss[[40, 77, 110]] += 0.9  # 9 SD, with a gradient like the others

    assert cause_of(fake(plant)).cause == "none"


def test_one_batch_of_rare_text_is_no_cause(fake):
    def plant(run):
        run.loss[100] += 0.8
        run.grad[100] *= 4

    assert cause_of(fake(plant)).cause == "none"


def test_the_first_fall_is_no_odd_batch(fake):
    def plant(run):
        run.loss[18:22] -= 2.5
        run.grad[18:22] *= 4

    assert cause_of(fake(plant)).cause == "none"


def test_entries_that_are_not_finite_name_their_matrix(fake):
    def plant(run):
        run.nonfinite["k_proj"][70, 2] = 0.1
        run.loss[71:], run.grad[71:] = np.nan, np.nan

    cause = cause_of(fake(plant))
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("nonfinite", "k_proj", 2, 71)


def test_a_loss_that_is_not_finite_has_no_place(fake):
    def plant(run):
        run.loss[70] = np.inf

    cause = cause_of(fake(plant))
    assert (cause.cause, cause.role, cause.step) == ("nonfinite", None, 71)


def test_qk_clip_may_shrink_what_it_clips(fake):
    def plant(run):
        run.scale(90, "q_proj", 1, 0.8).scale(90, "k_proj", 1, 0.8)

    cause = cause_of(fake(plant, changes={"optimizer__projection__method": "qk_clip"}))
    assert cause.cause == "none"
