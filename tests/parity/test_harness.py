"""lm-evaluation-harness: through our adapter the scores of its own `hf` model, and those of our fast path.

On llama2.c's stories260K, and on a model trained here.
"""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers

import main
from jaxstab.config import UserError
from jaxstab.evaluate import harness, opened
from jaxstab.train.trained import load
from tests.parity import superglue
from tests.stories import STORIES

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is downloaded
lm_eval = pytest.importorskip("lm_eval", reason="make parity installs lm-evaluation-harness")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")
pytest.importorskip("torch", reason="make parity installs PyTorch")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.metrics import aggregate_subtask_metrics  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks._yaml_loader import load_yaml  # noqa: E402

TINY = Path(__file__).parents[1] / "train" / "tiny.py"
SENTENCES = ["Once upon a time, there was a little girl named Lily.", "She loved to play outside in the park."]
SENTENCES += ["One day, she saw a big, red ball.", 'Ünïcode & <unk> words (1,000) aren\'t rare; "they" said so.']


def with_export(workdir):
    """The model in a workdir, and the harness's own model of its export."""
    out = workdir.with_name("export")
    assert main.main(["main.py", "export", f"--workdir={workdir}", f"--out={out}"]) == 0
    lm = load(workdir)
    return lm, HFLM(pretrained=str(out), batch_size=4, max_length=lm.max_length, device="cpu")


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    if not STORIES.exists():
        pytest.skip(f"needs {STORIES}; the model trained here is its twin")
    workdir = tmp_path_factory.mktemp("stories") / "run"
    recipe = f"--config={TINY}", "--config.data.source=stdlib"
    source = f"--from={STORIES / 'stories260K.bin'}"
    assert main.main(["main.py", "import", source, *recipe, f"--workdir={workdir}"]) == 0
    return with_export(workdir)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A WeSaR model of 150 steps on a few sentences, with a tokenizer of its own that has a piece <unk>."""
    place = tmp_path_factory.mktemp("trained")
    lines = [json.dumps({"text": " ".join(part)}) for part in itertools.permutations(SENTENCES)]
    (place / "corpus.jsonl").write_text("\n".join(lines))
    data = f"--config={TINY}", f"--config.data.files={place}/corpus.jsonl", f"--config.data.cache_dir={place}"
    tokenizer = place / "tokenizer.json"
    assert main.main(["main.py", "data", "tokenizer", *data, "--vocabulary=300", f"--out={tokenizer}"]) == 0
    library = tokenizers.Tokenizer.from_file(str(tokenizer))
    library.add_special_tokens(["<unk>"])
    library.save(str(tokenizer))
    keys = {"model.kv_heads": 1, "model.max_length": 64, "data.length": 64, "train.steps": 150}
    keys |= {"data.tokenizer": tokenizer, "optimizer.learning_rate": 0.01, "eval.every": 0, "model.width": 32}
    run = [*data, f"--workdir={place}/run", *(f"--config.{key}={value}" for key, value in keys.items())]
    assert main.main(["main.py", *run]) == 0
    return with_export(place / "run")


@pytest.fixture(params=["trained", "stories"])
def models(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few documents of every benchmark."""
    place = tmp_path_factory.mktemp("data")
    superglue.write(place)
    (place / "wikitext-2").mkdir()
    pages = [f" = Page {k} = \n \n {' '.join(SENTENCES * (4 * k + 1))} \n" for k in range(3)]
    (place / "wikitext-2" / "test.txt").write_text(" \n".join(pages))
    (place / "lambada").mkdir()
    passages = [" ".join(SENTENCES[: 1 + k % 4]).rstrip(".") for k in range(8)]
    lines = [json.dumps({"text": passage}) + "\n" for passage in passages]
    (place / "lambada" / "lambada_test.jsonl").write_text("".join(lines))
    return place


def asked(kind, arguments):
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def test_likelihoods_are_those_of_the_harness_s_own_model(models):
    lm, hf = models
    dice = np.random.default_rng(0)
    words = " ".join(SENTENCES).split()

    def text(count):
        return " ".join(dice.choice(words, count))

    pairs = [(text(c), f" {text(k)}") for c, k in [(1, 1), (5, 3), (3, 8), (90, 2), (60, 4), (2, 1), (4, 1)]]
    pairs += [("", text(3)), (f"{text(2)}  ", text(2)), ("She loved to", " play"), ("She loved to", " play outside")]
    pairs += [(" ".join(SENTENCES[:2])[:-5], answer) for answer in (" park", " play", " no")]
    expected = hf.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    scores = harness.adapter(lm).loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    np.testing.assert_allclose([each[0] for each in scores], [each[0] for each in expected], rtol=1e-4, atol=1e-5)
    assert [each[1] for each in scores] == [each[1] for each in expected]
    assert any(each[1] for each in scores)

    texts = [(text(count),) for count in (1, 40, 300)]
    rolling = harness.adapter(lm).loglikelihood_rolling(asked("loglikelihood_rolling", texts))
    np.testing.assert_allclose(rolling, hf.loglikelihood_rolling(asked("loglikelihood_rolling", texts)), rtol=1e-5)


def test_prompts_that_are_cut_are_told(trained):
    lm, titles = trained[0], []

    def shown(title):
        titles.append(title)
        return iter

    pairs = [("She", " loved"), (" ".join(SENTENCES * 9), " to")]
    harness.adapter(lm, shown).loglikelihood(asked("loglikelihood", pairs))
    assert titles == ["likelihoods (1 of 2 prompts lose their beginning)"]


def test_texts_are_those_of_the_harness_s_own_model(models):
    lm, hf = models
    options = [{"until": [until], "max_gen_toks": 20, "do_sample": False} for until in (".", " play")]
    contexts = ["Once upon a time", "She", "One day, she saw", " ".join(SENTENCES * 9)]
    arguments = [(context, given) for context in contexts for given in options]
    texts = harness.adapter(lm).generate_until(asked("generate_until", arguments))
    expected = [
        hf.generate_until(asked("generate_until", [each]), disable_tqdm=True)[0] for each in arguments
    ]  # one by one: a batch of its own is padded at the left
    assert texts == expected
    assert len({len(text) for text in texts}) > 3


def by_name(results):
    return {(result.task, result.metric): result for result in results}


def harness_results(model, tasks, data, limit=None):
    manager = harness._task_manager(tasks, data)
    evaluated = lm_eval.simple_evaluate(
        model=model, tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=1000, log_samples=False
    )
    return by_name(harness.results_of(evaluated["results"]))


def test_the_fast_path_and_the_harness_agree(models, data):
    lm, hf = models
    fast = by_name(result for measure in opened(data, ["wikitext", "lambada"]).values() for result in measure(lm, iter))
    tasks = ["local_wikitext", "local_lambada"]
    for results in (harness_results(hf, tasks, data), by_name(harness.opened(tasks, data)(lm, lambda title: iter))):
        assert len(results) == 5
        for (task, metric), result in results.items():
            ours = fast[task.removeprefix("local_"), metric]
            assert result.value == pytest.approx(ours.value, rel=1e-4)
            if metric == "acc":
                assert result.stderr == pytest.approx(ours.stderr, rel=1e-4)


def test_superglue_is_the_same_through_either_model(models, data):
    lm, hf = models
    expected = harness_results(hf, ["superglue_with_record"], data)
    results = by_name(harness.opened(["superglue_with_record"], data)(lm, lambda title: iter))
    assert results.keys() == expected.keys() and len(results) == 13  # of eight tasks, and three totals
    for name, result in results.items():
        assert result.value == pytest.approx(expected[name].value, rel=1e-6), name
        assert result.stderr == pytest.approx(expected[name].stderr, rel=0.2, nan_ok=True), name


def own(task, data):
    """The harness's own definition of a SuperGLUE task, on local files."""
    directory = Path(lm_eval.__file__).parent / "tasks" / "super_glue" / task
    config = load_yaml(directory / "default.yaml")
    local = load_yaml(harness.TASKS / f"superglue_{task}.yaml")
    for key in ("dataset_path", "dataset_name", "tag"):
        config.pop(key, None)
    return local_task(config | {"custom_dataset": local["custom_dataset"]}, data)


def local_task(config, data):
    return ConfigurableTask(config=config | {"metadata": {"data": str(data)}})


@pytest.mark.parametrize("task", ["boolq", "cb", "copa", "multirc", "rte", "wic", "wsc"])
def test_prompts_answers_and_metrics_are_the_harness_s_own(data, task):
    ours, theirs = local_task(load_yaml(harness.TASKS / f"superglue_{task}.yaml"), data), own(task, data)
    documents = list(ours.validation_docs())
    processed = list(theirs.validation_docs())
    assert len(documents) == len(processed) >= 2
    dice, items = np.random.default_rng(0), []
    for document, same in zip(documents, processed, strict=True):
        assert ours.doc_to_text(document) == theirs.doc_to_text(same)
        assert ours.doc_to_choice(document) == theirs.doc_to_choice(same)
        choices = ours.doc_to_choice(document)
        target, wanted = ours.doc_to_target(document), theirs.doc_to_target(same)
        assert {target, str(target)} & {wanted, choices.index(wanted) if wanted in choices else wanted}
        results = [(float(each), False) for each in dice.normal(size=len(choices))]
        items.append((ours.process_results(document, results), theirs.process_results(same, results)))
        assert items[-1][0].keys() == items[-1][1].keys()
    for metric in items[0][0]:
        values = [[each[side][metric] for each in items] for side in (0, 1)]
        totals = [which.aggregation()[metric](each) for which, each in zip((ours, theirs), values, strict=True)]
        assert totals[0] == pytest.approx(totals[1])


def test_record_asks_for_the_entity_that_a_query_leaves_out(data):
    """Its prompt is the harness's, which transformers 5 no longer has the metrics for."""
    task = local_task(load_yaml(harness.TASKS / "superglue_record.yaml"), data)
    document = next(iter(task.validation_docs()))
    assert task.doc_to_text(document) == (
        "Ann Lee, a nurse, lives in Rome. She met Bob Hill there in 1990.\n\n  - Ann met Bob.\n"
    )
    assert task.doc_to_target(document) == "  - Ann Lee is a nurse"
    assert task.doc_to_choice(document) == [f"  - {name} is a nurse" for name in ("Ann Lee", "Bob Hill", "Rome")]
    for answers, likeliest, scores in [
        (["The Ann Lee."], 0, {"em": 1.0, "f1": 1.0}),
        (["Bob Lee", "Rome"], 0, {"em": 0.0, "f1": 0.5}),
        (["Ann Lee"], 2, {"em": 0.0, "f1": 0.0}),
    ]:
        results = [(float(number == likeliest), False) for number in range(3)]
        assert task.process_results(document | {"answers": answers}, results) == scores


def test_totals_are_over_documents_as_in_the_paper_s_table_8():
    """Small's row: seven accuracies and their number of documents give its total of 51.73, and F1 its 73.65."""
    accuracies, sizes = [60.28, 32.14, 73.00, 46.12, 53.43, 50.00, 40.38], [3270, 56, 100, 4848, 277, 638, 104]
    (acc, f1) = load_yaml(harness.TASKS / "superglue.yaml")["aggregate_metric_list"]
    assert (acc["metric"], f1["metric"]) == ("acc", "f1")
    total = aggregate_subtask_metrics(accuracies, sizes, acc["weight_by_size"])
    assert total == pytest.approx(51.73, abs=0.01)
    total = aggregate_subtask_metrics([22.26, 73.93], [56, 10000], f1["weight_by_size"])
    assert total == pytest.approx(73.65, abs=0.01)


def test_what_is_missing_is_said_in_a_line(tmp_path, trained):
    with pytest.raises(UserError, match=r"BoolQ/train.jsonl is missing"):
        harness.opened(["superglue_boolq"], tmp_path)(trained[0], lambda title: iter)


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.evaluator", None)
    with pytest.raises(UserError, match=r"pip install -e \.\[harness\]"):
        harness.opened(["superglue"])
