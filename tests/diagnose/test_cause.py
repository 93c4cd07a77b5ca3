"""A planted cause is named, with its place and step, by evidence that the run bears out; no cause, no alarm."""

from pathlib import Path

import numpy as np
import pytest

from jaxstab.diagnose import Cause, causes, find_causes, read_history
from jaxstab.diagnose.causes import CAUSES, ranked
from jaxstab.diagnose.causes.learning_rate import VIOLENT, growth


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
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_scaled", role, layer, step)
    assert f"x{factor:.3g}" in cause.evidence[0]


@pytest.mark.parametrize("factor", [1.02, 0.98])
def test_a_change_smaller_than_the_update_is_found_by_being_unlike_others(fake, factor):
    cause = cause_of(fake(lambda run: run.scale(90, "o_proj", 3, factor), rate=0.03))
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_scaled", "o_proj", 3, 90)
    assert "unlike any change of it before" in cause.evidence[0]


def test_what_is_scaled_before_the_first_step_is_found_by_its_initial_scale(fake):
    cause = cause_of(fake(lambda run: run.scale(1, "up_proj", 2, 1.4)))
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_scaled", "up_proj", 2, 1)
    cause = cause_of(fake(lambda run: run.scale(1, "up_proj", 2, 1.4), saved=False))
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_scaled", "up_proj", 2, 1)


@pytest.mark.parametrize("step", [1, 70])
def test_a_matrix_that_was_zeroed(fake, step):
    history = read_history(fake())
    for measurement in ("norm", "norm_effective"):
        history.series[f"stability/{measurement}/v_proj"].values[step - 1 :, 2] = 0.0
    cause = find_causes(history)[0]
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_scaled", "v_proj", 2, step)


def test_a_matrix_that_begins_at_zero_was_not_changed(fake):
    """A branch that starts at zero: no update ratio tells of its first steps."""
    history = read_history(fake(changes={"reparam__method": "rezero"}))
    for measurement in ("norm", "norm_effective"):
        history.series[f"stability/{measurement}/o_proj"].values[:2] = 0.0
    assert [each.cause for each in find_causes(history)] == ["none"]


def test_norms_that_shrink_and_then_grow(fake):
    """By how much the median matrix grew counts, not whether it came to more than it was at first."""
    history = read_history(fake())
    factor = np.exp(np.abs(np.linspace(-2, 2, 160)) - 2)[:, None]
    for name, series in history.series.items():
        if name.startswith(("stability/norm/", "stability/norm_effective/")):
            series.values[:] *= factor
        if name.startswith(("stability/update_ratio/", "stability/update_ratio_effective/")):
            series.values[:] += 0.05
    cause = find_causes(history)[0]
    assert cause.cause == "learning_rate" and 80 <= cause.step <= 110


def test_what_causes_explain_of_each_other():
    def at(cause, step, outside=False):
        return Cause(cause, step=step, from_outside=outside)

    change, late = at("weights_scaled", 80, True), at("attention_logits", 200, True)
    embedding, start = at("embedding_scale", 1, True), at("weights_scaled", 1, True)
    echo, after, before = at("data", 140), at("data", 141), at("data", 79)
    rate, logits = at("learning_rate", 90), at("attention_logits", 100)
    assert ranked([late, change, rate, echo, after, before, logits]) == [change, late, rate, after, before, logits]
    assert ranked([start, change, embedding]) == [embedding, change]
    assert ranked([start, change]) == [start, change]
    assert ranked([]) == []


def test_where_all_matrices_grow_violently_a_change_has_to_be_beyond_its_update(fake):
    """The same change within its update is a cause where matrices keep their size, and none where they don't."""

    def plant(run):
        run.scale(90, "o_proj", 3, 1.02)

    calm, violent = (read_history(fake(plant, rate=0.03)) for _ in range(2))
    grow = np.exp(np.linspace(0, 5, 160))[:, None]
    for name, series in violent.series.items():
        if name.startswith("stability/norm"):
            series.values[:] *= grow
        if name.startswith("stability/update_ratio"):
            series.values[:] += 0.05
    assert growth(violent).factor > VIOLENT > growth(calm).factor
    assert [each.cause for each in find_causes(calm)] == ["weights_scaled"]
    assert [each.cause for each in find_causes(violent)] == ["learning_rate"]


def test_every_file_of_causes_is_registered():
    files = {path.stem for path in Path(causes.__file__).parent.glob("*.py")}
    assert files - {"__init__", "base", "weight_changes"} == set(CAUSES) - {"none"}


def test_the_consequences_of_a_change_are_no_second_cause(fake):
    def plant(run):
        run.scale(80, "v_proj", 1, 20.0)
        run.loss[79:95] += 2
        run.grad[79:95] *= 10

    assert [each.cause for each in find_causes(read_history(fake(plant)))] == ["weights_scaled"]


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
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_scaled", "embed_tokens", None, 70)


def test_a_learning_rate_at_which_all_matrices_grow(fake):
    cause = cause_of(fake(rate=0.2))
    assert cause.cause == "learning_rate" and cause.step < 25


def test_a_learning_rate_that_ends_the_run_at_once(fake):
    def plant(run):
        run.loss[2], run.grad[2] = np.nan, np.nan

    several = find_causes(read_history(fake(plant, rate=30.0, steps=3)))
    assert [each.cause for each in several] == ["learning_rate", "nonfinite"]


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


def test_a_rate_that_is_too_high_explains_the_spikes_after(fake):
    def plant(run):
        run.loss[120:126] += 3
        run.grad[120:126] *= 4

    several = find_causes(read_history(fake(plant, rate=0.2)))
    assert [each.cause for each in several] == ["learning_rate", "data"]


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
