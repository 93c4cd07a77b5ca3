"""The model in a workdir: its weights are those of the whole state, and what is damaged or missing is said."""

import json
import shutil

import jax
import numpy as np
import pytest

import main
from jaxstab.config import UserError
from jaxstab.evaluate import wikitext
from jaxstab.model.transformer import Transformer
from jaxstab.train.checkpoint import CheckpointConfig, Checkpoints
from jaxstab.train.program import build
from jaxstab.train.trained import load


@pytest.mark.parametrize("step", [None, 6])
def test_the_weights_are_those_of_the_whole_state(unbroken, step):
    trained = load(unbroken, step)
    program = build(trained.config, trained.tokenizer.end)
    with Checkpoints(unbroken / "checkpoints", CheckpointConfig()) as checkpoints:
        state, _ = checkpoints.restore(step or 8, program.abstract_state)
    assert trained.step == (step or 8)
    jax.tree.map(np.testing.assert_array_equal, trained.weights, program.merge(state))


def lines_of(capsys, *flags):
    code = main.main(["main.py", "generate", *flags])
    captured = capsys.readouterr()
    return code, (captured.out if code == 0 else captured.err).splitlines()


def test_generate_continues_every_prompt_greedily(unbroken, capsys):
    trained = load(unbroken)
    apply = jax.jit(lambda tokens: Transformer(trained.config.model).apply({"params": trained.weights}, tokens))
    texts = []
    for prompt in ("loss", "a"):
        tokens = [trained.tokenizer.end, *trained.tokenizer.encode([prompt])[0]]
        for _ in range(6):
            logits = apply(np.array([tokens + [0] * (16 - len(tokens))]))[0, len(tokens) - 1, :257]
            tokens.append(int(np.argmax(logits)))
        texts.append(trained.tokenizer.decode(tokens))
    code, lines = lines_of(capsys, f"--workdir={unbroken}", "--prompt=loss", "--prompt=a", "--length=6")
    assert code == 0 and "\n".join(lines) == "\n".join(texts)


def test_draws_follow_their_seed(unbroken, capsys):
    flags = f"--workdir={unbroken}", "--temperature=2", "--top_k=50", "--length=12"
    texts = [lines_of(capsys, *flags, f"--seed={seed}") for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


REFUSED = [
    (["--length=20"], "--length=20 after a prompt of 1 tokens", "at most --length=15"),
    (["--length=0"], "--length=0 must be at least 1", ""),
    (["--temperature=-1"], "temperature=-1.0 must be at least 0", ""),
    (["--top_p=2"], "top_p=2.0 must be above 0 and at most 1", ""),
    (["--step=5"], "no checkpoint of step 5", "there is: 6, 8"),
    (["--workdir=nowhere"], "nowhere has no checkpoint", "--workdir takes the directory of a run"),
]


@pytest.mark.parametrize(("flags", "given", "right"), REFUSED)
def test_a_mistake_is_one_line(unbroken, capsys, flags, given, right):
    code, lines = lines_of(capsys, f"--workdir={unbroken}", *flags)
    assert code == 1
    (line,) = lines
    assert given in line and right in line


def change_record(path):
    (file,) = (each for each in (path / "record").rglob("*") if b'"config"' in each.read_bytes())
    file.write_bytes(
        file.read_bytes().replace(b'"attempt": 0', b'"attempt": 1').replace(b'"attempt":0', b'"attempt":1')
    )


def change_arrays(path):  # a bit flipped in a moment would go unnoticed, since no moment is read
    shutil.rmtree(path / "state")
    shutil.copytree(path.parent / "6" / "state", path / "state")


def tear_arrays(path):
    for file in (path / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(change_record, "is damaged: its record"), (change_arrays, "is not what was written"), (tear_arrays, "be read")],
)
def test_a_damaged_checkpoint_is_named(unbroken, tmp_path, damage, reason):
    shutil.copytree(unbroken, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "8")
    with pytest.raises(UserError, match=rf"checkpoints/8 .*{reason}"):
        load(tmp_path / "run")


def test_another_tokenizer_is_refused(unbroken, tmp_path, monkeypatch):
    from jaxstab.data import tokenizers

    monkeypatch.setattr(tokenizers.ByteTokenizer, "digest", json.dumps("another"))
    with pytest.raises(UserError, match="isn't the tokenizer"):
        load(unbroken)


def test_evaluate_measures_a_workdir(unbroken, tmp_path, capsys):
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "wikitext-2" / "wiki.test.tokens").write_text(" = Loss = \n the loss of a layer\n")
    out = tmp_path / "results.json"
    flags = f"--workdir={unbroken}", f"--data={tmp_path}", "--tasks=wikitext", f"--results={out}"
    assert main.main(["main.py", "evaluate", *flags]) == 0
    first, *printed, last = capsys.readouterr().out.splitlines()
    assert first == f"Step 8 of {unbroken}, 16 tokens at once: wikitext" and last == f"Written: {out}"
    record = json.loads(out.read_text())
    (lm, text) = load(unbroken), wikitext.read(tmp_path)
    expected = wikitext.wikitext(lm, text)
    assert record["step"] == 8 and [result["value"] for result in record["results"]] == [e.value for e in expected]
    assert [line.split()[:2] for line in printed] == [[each.task, each.metric] for each in expected]


def test_evaluate_says_what_is_missing(unbroken, tmp_path, capsys):
    assert main.main(["main.py", "evaluate", f"--workdir={unbroken}", f"--data={tmp_path}"]) == 1
    assert "wikitext-2/test.txt is missing" in capsys.readouterr().err
