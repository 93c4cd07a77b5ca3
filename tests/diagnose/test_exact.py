"""What is exact is found in real runs, whatever its size, at its step and place; where it isn't, nothing is found."""

import dataclasses

import numpy as np
import pytest

from jaxstab.data import Batches
from jaxstab.diagnose import diagnosed, find_causes
from jaxstab.diagnose.diagnosis import is_accepted
from jaxstab.train.journal import Journal, Rollback
from tests.diagnose.real import BATCH, STEPS, copied, real

AT = 40


def first(history):
    return find_causes(history)[0]


def at(step, function):
    """What is done before one step alone."""
    return lambda now, state: function(state) if now == step else state


def written(name, function):
    run = real()
    return run.run(state_of=at(AT, lambda state: run.written(state, name, function)))


def test_a_run_that_nothing_was_done_to():
    diagnosis = diagnosed(real().run())
    assert [each.cause for each in diagnosis.causes] == ["none"] and not diagnosis.advice


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.999, 1.001, -1.0, 30.0])
def test_a_matrix_that_was_scaled(factor):
    cause = first(written("up_proj", lambda w: w.at[1].multiply(factor)))
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_changed", "up_proj", 1, AT)
    assert cause.certainty == "identity" and cause.last == AT
    if factor in (0.5, 30.0):
        assert f"all of it times {factor:.4g}" in cause.evidence[0]


@pytest.mark.parametrize("size", [0.01, 1e4])
def test_one_entry_that_was_changed(size):
    cause = first(written("v_proj", lambda w: w.at[2, 3, 5].add(size)))
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_changed", "v_proj", 2, AT)
    assert "some of its entries" in cause.evidence[0]


def test_rows_of_the_embedding_and_a_gain():
    cause = first(written("embed_tokens", lambda w: w.at[3:6].multiply(2.0)))
    assert (cause.cause, cause.role, cause.layer) == ("weights_changed", "embed_tokens", None)
    gain = "layers/input_layernorm/scale"
    cause = first(written(gain, lambda w: w.at[1].multiply(1.1)))
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_changed", gain, 1, AT)
    assert cause.place == "input_layernorm/scale of layer 1"


def test_queries_and_keys_of_one_layer_for_several_steps():
    run = real()

    def grown(step, state):
        for name in ("q_proj", "k_proj"):
            if AT <= step < AT + 9:
                state = run.written(state, name, lambda w: w.at[1, :, :8].multiply(1.05))
        return state

    causes = find_causes(run.run(state_of=grown))
    assert [(each.cause, each.layer, each.step, each.last) for each in causes] == [("attention_logits", 1, AT, AT + 8)]


def test_a_head_that_drifts_for_many_steps_moves_the_output_logits():
    run = real()

    def drifting(step, state):
        return run.written(state, "lm_head", lambda w: 1.08 * w) if AT <= step < AT + 20 else state

    causes = find_causes(run.run(state_of=drifting))
    assert [(each.cause, each.role, each.step) for each in causes] == [("output_logits", "lm_head", AT)]
    assert causes[0].last == AT + 19 and "log Z went from" in causes[0].evidence[-1]


@pytest.mark.parametrize(("kind", "name", "layer"), [("mu", "o_proj", 2), ("nu", "k_proj", 0), ("mu", "lm_head", None)])
@pytest.mark.parametrize("factor", [0.0, 0.9, 100.0])
def test_a_moment_that_was_lost_or_scaled(kind, name, layer, factor):
    run = real()

    def changed(state):
        return run.moments(state, kind, name, lambda m: m.at[... if layer is None else layer].multiply(factor))

    cause = first(run.run(state_of=at(AT, changed)))
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("optimizer_state", name, layer, AT)


def test_all_moments_lost():
    def lost(state):
        return state._replace(optimizer=run.program.init(0).optimizer)

    run = real()
    cause = first(run.run(state_of=at(AT, lost)))
    assert (cause.cause, cause.role, cause.step) == ("optimizer_state", None, AT)


@pytest.mark.parametrize("factor", [0.0, 0.99, 30.0])
def test_a_rate_off_its_schedule(factor):
    def glitch(step, rates):
        return rates._replace(learning_rate=rates.learning_rate * factor) if AT <= step < AT + 3 else rates

    cause = first(real().run(hypers_of=glitch))
    assert (cause.cause, cause.step, cause.last) == ("rate_off_schedule", AT, AT + 2)
    assert f"{factor:.3g} times the schedule's" in cause.evidence[0]


def test_the_rate_after_a_roll_back_is_the_journal_s_from_the_checkpoint_on():
    history = real().run()
    to, until = 20, 40
    history.series["train/learning_rate"].values[to:until] *= 0.5
    journal = Journal((), (Rollback(1, 30, to, (30, 31), 0.5, 0.0, until, "a spike"),))
    rolled_back = dataclasses.replace(history, journal=journal)
    del rolled_back.series["train/position"]  # it has batches left out
    assert first(rolled_back).cause == "none"
    assert first(dataclasses.replace(history)).cause == "rate_off_schedule"


def test_a_batch_that_comes_again_and_one_of_another_text():
    run = real()
    again = run.run(tokens_of=lambda step, tokens: run.batches[AT - 1] if AT < step < AT + 9 else tokens)
    cause = first(again)
    assert (cause.cause, cause.step, cause.last) == ("data", AT + 1, AT + 8)
    assert f"8 of them the batch of step {AT}" in cause.evidence[0]
    without = dataclasses.replace(again, split=None)  # the corpus isn't there any more
    assert [(each.cause, each.step, each.last) for each in find_causes(without)] == [("data", AT + 1, AT + 8)]
    cause = first(run.run(tokens_of=lambda step, tokens: tokens[:, ::-1] if step == AT else tokens))
    assert (cause.cause, cause.step, cause.last) == ("data", AT, AT)


def test_a_resume_with_the_state_of_an_earlier_step():
    kept = {}

    def resumed(step, state):
        if step == AT - 10:
            kept["state"] = copied(state)
        return kept["state"] if step == AT else state

    causes = find_causes(real().run(state_of=resumed))
    assert [(each.cause, each.step) for each in causes] == [("bad_resume", AT)]
    assert f"step {AT - 10} began with" in causes[0].evidence[0]


def test_a_resume_at_another_place_in_the_data_and_on_the_schedule():
    run = real()
    behind = run.run(tokens_of=lambda step, tokens: run.batches[step - 8] if step >= AT else tokens)
    causes = find_causes(behind)
    assert [(each.cause, each.step, each.last) for each in causes] == [("bad_resume", AT, STEPS)]
    assert f"batches of steps {AT - 7} to {STEPS - 7}" in causes[0].evidence[0]

    # Without the corpus only what comes twice is known: after eight steps come batches that were left out.
    causes = find_causes(dataclasses.replace(behind, split=None))
    assert [(each.cause, each.step, each.last) for each in causes] == [("bad_resume", AT, AT + 6)]
    records = Batches(run.split, run.config.data.seed)

    def skipped(step, tokens):
        return records.records(BATCH * (step - 1) + 7, BATCH) if step >= AT else tokens

    causes = find_causes(run.run(tokens_of=skipped))
    assert [(each.cause, each.step, each.last) for each in causes] == [("bad_resume", AT, STEPS)]
    assert f"the records from {BATCH * (AT - 1) + 7} on" in causes[0].evidence[0]

    def late(step, rates):
        return rates._replace(position=np.int32(step - 20)) if step >= AT else rates

    causes = find_causes(run.run(hypers_of=late))
    assert [(each.cause, each.step) for each in causes] == [("bad_resume", AT)]
    assert "19 steps earlier" in causes[0].evidence[0]

    history = run.run()
    history.series["train/position"].values[AT - 1 :] += BATCH
    cause = first(history)
    assert (cause.cause, cause.step) == ("bad_resume", AT)


def test_what_is_exact_explains_what_came_of_it():
    cause, *others = find_causes(written("lm_head", lambda w: 50.0 * w))
    assert (cause.cause, cause.role, cause.step) == ("weights_changed", "lm_head", AT)
    assert not others and cause.cost > 1


def test_a_run_without_a_saved_config_has_its_weights_checked_all_the_same():
    run = real()
    history = run.run(state_of=at(AT, lambda state: run.written(state, "down_proj", lambda w: w.at[0].multiply(1.5))))
    bare = dataclasses.replace(history, saved={})
    cause = first(bare)
    assert (cause.cause, cause.role, cause.layer, cause.step) == ("weights_changed", "down_proj", 0, AT)
    assert [each.cause for each in find_causes(dataclasses.replace(run.run(), saved={}))] == ["none"]


def test_what_the_program_refuses_is_not_accepted():
    history = real().run(2)
    assert is_accepted(history, "optimizer.projection.method=qk_clip")
    refused = dataclasses.replace(history, saved=history.saved | {"model.qk_norm": True})
    assert not is_accepted(refused, "optimizer.projection.method=qk_clip")
