"""What diagnose reads, says and writes: from a whole run, from a part of one, and from one that still goes."""

import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import main
from jaxstab.config import UserError
from jaxstab.diagnose import diagnose, diagnosed, read_history
from jaxstab.diagnose.figures import FIGURES, figures, thinned
from jaxstab.diagnose.moved import moved_before
from jaxstab.diagnose.page import page
from jaxstab.diagnose.sections import as_text, sections
from jaxstab.logging import read_measurements


def spiking(run):
    """up_proj of layer 3 gets a larger gradient five steps before the loss and the whole gradient jump."""
    run.loss[119:125] += 4
    run.grad[119:125] *= 30


class Reader(html.parser.HTMLParser):
    """Reads what a browser would follow, and the sections."""

    def __init__(self, text):
        super().__init__()
        self.references, self.ids = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.references += [given[key] for key in ("href", "src", "xlink:href") if key in given]
        assert tag not in ("script", "img", "link")


def test_a_run_with_a_spike(fake, capsys):
    workdir = fake(spiking)
    assert main.main(["main.py", "diagnose", f"--workdir={workdir}"]) == 0
    said = capsys.readouterr().out
    assert "Cause: data from step 120" in said and "OLMo 2 on loss" in said
    report = json.loads((workdir / "report" / "diagnose.json").read_text())
    assert report["causes"][0]["cause"] == "data" and report["causes"][0]["step"] == 120
    assert report["definitions"]["SkipStep on grad_norm"][0] == 120
    assert report["spikes"][0]["first"] == 120
    assert any("stability.on_spike" in each["keys"] for each in report["advice"])

    written = (workdir / "report" / "diagnose.html").read_text()
    read = Reader(written)
    assert all(reference.startswith("#") for reference in read.references)  # works offline
    assert {reference[1:] for reference in read.references} <= set(read.ids)
    assert len(read.ids) == len(set(read.ids))
    drawings = re.findall(r"<svg.*?</svg>", written, re.DOTALL)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert len(drawings) == len(FIGURES)


def test_what_was_not_measured_is_said_to_be_missing(fake, monkeypatch):
    monkeypatch.setattr("jaxstab.diagnose.figures.svg_of", lambda figure: "<svg></svg>")  # which takes the time
    history = read_history(fake())
    for name in [name for name in history.series if "jacobian" in name or "tev_histogram/" in name]:
        del history.series[name]
    missing = [figure.missing for figure in figures(history, []) if figure.missing]
    assert missing == [
        "missing: stability/tev_histogram (stability.measure=full)",
        "missing: stability/jacobian (stability.measure=full)",
    ]


def test_what_moved_first(fake):
    history = read_history(fake(spiking))
    series = history.series["stability/grad_norm/up_proj"]
    series.values[114:, 3] *= 50
    moved = moved_before(history, 120)
    assert (moved[0].measurement, moved[0].part, moved[0].layer, moved[0].ahead) == ("grad_norm", "up_proj", 3, 5)
    assert moved[0].deviation > 6
    assert all(each.step > 115 for each in moved[1:])


@pytest.mark.parametrize("seed", range(3))
def test_noise_moves_nothing(fake, seed):
    history = read_history(fake(seed=seed))
    assert [moved for step in (80, 120, 150) for moved in moved_before(history, step)] == []


def test_metrics_alone_are_enough(fake):
    workdir = fake(spiking, measurements=False, saved=False)
    diagnosis = diagnose(workdir)
    assert diagnosis.cause.cause == "data"
    assert read_measurements(workdir) == {}
    unknown = [each for each in diagnosis.conditions if each.holds is None]
    assert len(unknown) == len(diagnosis.conditions) and all(each.measured.startswith("missing: ") for each in unknown)
    assert "missing: stability/update_ratio" in (workdir / "report" / "diagnose.html").read_text()


def test_a_run_still_going(fake):
    """A torn last line, measurements behind the metrics, and only a few steps."""
    workdir = fake(steps=6)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "attempt": 0, "train/lo')
    assert diagnose(workdir).steps == (1, 6)


def test_steps_after_a_roll_back_replace_those_before(fake):
    workdir = fake()
    with (workdir / "metrics.jsonl").open("a") as file:
        for step in (151, 152):
            file.write(json.dumps({"step": step, "attempt": 1, "train/loss": 9.0, "train/grad_norm": 1.0}) + "\n")
    history = read_history(workdir)
    steps, loss = history.scalar("train/loss")
    assert steps.tolist() == list(range(1, 153)) and loss[150:].tolist() == [9.0, 9.0]
    assert set(history.seams) == {151}


def test_conditions_by_the_initial_scales(fake):
    judged = {each.condition: each for each in diagnosed(read_history(fake())).conditions}
    shortcut = judged["large shortcut: the standard deviation of the embedding is close to 1"]
    assert shortcut.holds is False and f"{32**-0.5:.2f}"[:3] in shortcut.measured
    unit = fake(changes={"model__embedding__method": "unit"})
    judged = {each.condition: each for each in diagnosed(read_history(unit)).conditions}
    assert judged["large shortcut: the standard deviation of the embedding is close to 1"].holds is True


def small_embedding(run):
    run.scale(1, "embed_tokens", 0, 0.01)


def test_what_is_so_already_is_not_advised(fake):
    keys = [each.keys for each in diagnosed(read_history(fake(small_embedding))).advice]
    assert "model.embedding.method=scaled" in keys and len(keys) == len(set(keys))
    scaled = fake(small_embedding, changes={"model__embedding__method": "scaled"})
    diagnosis = diagnosed(read_history(scaled))
    assert diagnosis.cause.cause == "embedding_scale"
    assert "model.embedding.method=scaled" not in [each.keys for each in diagnosis.advice]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reparam__method": "wesar", "model__embedding__method": "unit"},  # as configs/quickstart.py
        {"model__embedding__method": "scaled", "init__method": "small"},
        {"reparam__method": "rezero"},
    ],
)
def test_a_healthy_run_is_told_to_change_nothing(fake, changes):
    """Whatever condition of a paper it is outside of; lines that are this project's are not said to fail."""
    diagnosis = diagnosed(read_history(fake(changes=changes)))
    assert diagnosis.cause.cause == "none" and diagnosis.advice == ()
    assert any(each.holds is False for each in diagnosis.conditions)
    said = "\n".join(as_text(sections(diagnosis)))
    assert "What to do:\n  Nothing." in said
    own = [each for each in diagnosis.conditions if not each.exact]
    assert {each.verdict for each in own} <= {"holds", "outside what the paper saw", "unknown"}
    assert all(each.verdict in said for each in diagnosis.conditions)


def test_a_condition_that_a_paper_states_exactly_fails(fake):
    judged = {each.condition: each for each in diagnosed(read_history(fake())).conditions}
    assert judged["all stored matrices begin with one standard deviation"].verdict == "fails"
    assert [each.condition for each in judged.values() if each.exact] == [
        "all stored matrices begin with one standard deviation"
    ]


class Text(html.parser.HTMLParser):
    """The text of a page without its drawings, in lines of one element each."""

    def __init__(self, page):
        super().__init__()
        self.texts = []
        self.feed(re.sub("<svg.*?</svg>|<style.*?</style>", "", page, flags=re.DOTALL))
        self.close()

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("plant", [spiking, small_embedding, lambda run: None])
def test_the_page_says_what_the_terminal_says(fake, plant):
    parts = sections(diagnosed(read_history(fake(plant))))
    on_page = re.sub(r"\s+", " ", " ".join(Text(page("A run", "", parts, [])).texts))
    lines = [line for line in as_text(parts) if line]
    assert len(lines) > 30
    for line in lines:
        for part in re.split(r"\s{2,}", line.strip().removesuffix(":")):  # the cells of a row
            assert part in on_page, part


def test_thinning_keeps_the_extremes():
    values = np.random.default_rng(0).standard_normal(50_000)
    values[31_234] = 40
    steps, extremes = thinned(np.arange(50_000), values)
    assert len(steps) <= 800 and 31_234 in steps and extremes.min() == values.min()
    assert (np.diff(steps) > 0).all()


@pytest.mark.parametrize("content", [None, "", "no metrics\n", '{"step": 1, "attempt": 0, "eval/x/loss": 3}\n'])
def test_what_is_no_run_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError) as raised:
        diagnose(tmp_path)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_the_command_needs_a_workdir(capsys):
    assert main.main(["main.py", "diagnose"]) == 1
    assert capsys.readouterr().err == "error: --workdir is missing: for instance --workdir=runs/first\n"
