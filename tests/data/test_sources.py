"""Sources beyond local files: Python's library, TFDS without TensorFlow, the Hugging Face library."""

import dataclasses
import sys

import pytest

from jaxstab.config import UserError
from jaxstab.data import DataConfig, prepare, prepare_tfds, sources
from jaxstab.data.files import BadLines
from jaxstab.data.sources import documents, open_source
from tests.data.conftest import write_jsonl


def read(config: DataConfig) -> list[str]:
    return list(documents(open_source(config), BadLines(config.bad_lines)))


def test_the_standard_library_is_read_in_place():
    texts = read(DataConfig())
    assert sum(map(len, texts)) > 5_000_000
    assert any("class OrderedDict" in text for text in texts)
    assert not any("import numpy" in text for text in texts), "site-packages is left out"
    assert texts == read(DataConfig())


def test_what_is_installed_is_not_walked_through_and_nothing_else_is_left_out(tmp_path):
    for name in ("b.py", "a/test.py", "a/c.txt", "a/tests/d.py", "site-packages/e.py", "f/g/h.py", "testing/i.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    kept = {path for path in tmp_path.rglob("*.py") if not sources.NOT_SOURCES & set(path.relative_to(tmp_path).parts)}
    assert set(sources._python_sources(tmp_path)) == kept
    assert {path.name for path in kept} == {"b.py", "test.py", "h.py", "i.py"}


def test_a_standard_library_without_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(UserError, match="no Python sources under"):
        open_source(DataConfig())


@pytest.fixture
def tfds_config(config, tmp_path) -> DataConfig:
    pytest.importorskip("tensorflow_datasets")
    prepare_tfds(config, tmp_path / "sets", "small_corpus")
    return dataclasses.replace(config, source="tfds", files=(), name="small_corpus", data_dir=str(tmp_path / "sets"))


def test_a_tfds_set_of_our_making_needs_no_tensorflow(tfds_config, texts, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    assert "tensorflow" not in sys.modules
    monkeypatch.setattr(sources, "DOCUMENTS_PER_UNIT", 70)
    assert len(open_source(tfds_config).units()) == 5
    assert sorted(read(tfds_config)) == sorted(texts)
    by_directory = dataclasses.replace(tfds_config, name=str(tmp_path / "sets" / "small_corpus" / "1.0.0"), data_dir="")
    assert read(by_directory) == read(tfds_config)
    assert len(read(dataclasses.replace(tfds_config, split="train[:10%]"))) == 30
    library = tfds.data_source("small_corpus", data_dir=tfds_config.data_dir, split="train")
    assert [row["text"].decode() for row in library] == read(tfds_config)
    assert "tensorflow" not in sys.modules


def test_a_tfds_set_is_packed_in_parallel(tfds_config, texts, monkeypatch):
    monkeypatch.setattr(sources, "DOCUMENTS_PER_UNIT", 100)
    prepared = prepare(dataclasses.replace(tfds_config, workers=2))
    assert prepared.train.documents + prepared.validation.documents == len(texts)


def test_what_is_wrong_with_a_tfds_set_is_told(tfds_config, config, tmp_path):
    cases = [
        ({"name": "no_such_set"}, "no prepared TFDS set"),
        ({"name": "tiny_shakespeare"}, "not prepared yet|no prepared TFDS set"),
        ({"field": "body"}, "no field 'body': it has text"),
        ({"split": "dev"}, "data.split=dev: .* has train"),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message) as error:
            read(dataclasses.replace(tfds_config, **change))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="exists already"):
        prepare_tfds(config, tmp_path / "sets", "small_corpus")
    with pytest.raises(UserError, match="is no name for a TFDS set"):
        prepare_tfds(config, tmp_path / "sets", "Small Corpus")


def test_a_tfds_set_in_tensorflows_format_is_refused(tfds_config, tmp_path):
    info = tmp_path / "sets" / "small_corpus" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"stored as tfrecord.*prepare it with file_format=array_record"):
        open_source(tfds_config)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type", "pythonClass\\u004eame"])
def test_a_tfds_set_imports_nothing_that_its_files_name(tfds_config, tmp_path, monkeypatch, key):
    (tmp_path / "named_by_the_set.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "sets" / "small_corpus" / "1.0.0" / "features.json"
    own = '"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text"'
    assert own in path.read_text()
    path.write_text(path.read_text().replace(own, f'"{key}": "named_by_the_set.Feature"'))
    for name, place in (("small_corpus", tfds_config.data_dir), (str(path.parent), "")):
        with pytest.raises(UserError, match=r"features.json has features that aren't TFDS's own: named_by_the_set"):
            open_source(dataclasses.replace(tfds_config, name=name, data_dir=place))


def test_a_bad_line_leaves_no_half_tfds_set(config, tmp_path):
    write_jsonl(tmp_path / "corpus" / "c.jsonl", ["x"], field="body")
    with pytest.raises(UserError, match=r"c.jsonl:1: no field 'text'") as error:
        prepare_tfds(config, tmp_path / "sets", "broken")
    assert "\n" not in str(error.value)
    (tmp_path / "corpus" / "c.jsonl").unlink()
    assert prepare_tfds(config, tmp_path / "sets", "broken").is_dir()


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("datasets", reason="the hf extra is not installed")


def test_a_saved_hugging_face_set(datasets, config, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DOCUMENTS_PER_UNIT", 100)
    whole = datasets.Dataset.from_dict({"text": texts})
    whole.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "saved_dict"))
    for name in ("saved", "saved_dict"):
        hub = dataclasses.replace(config, source="huggingface", files=(), name=str(tmp_path / name))
        assert len(open_source(hub).units()) == 3
        assert read(hub) == texts
        assert prepare(dataclasses.replace(hub, workers=2)).digest == prepare(config).digest


def test_a_directory_of_files_through_the_hugging_face_library(datasets, config, texts, tmp_path):
    hub = dataclasses.replace(config, source="huggingface", name=str(tmp_path / "corpus"))
    assert len(open_source(hub).units()) == 2
    assert read(hub) == texts
    with pytest.raises(UserError, match="no field 'body': it has id, text"):
        read(dataclasses.replace(hub, field="body"))
    with pytest.raises(UserError, match="cannot be loaded"):
        read(dataclasses.replace(hub, split="dev"))
    with pytest.raises(UserError, match="cannot be loaded") as error:
        read(dataclasses.replace(hub, name="no/such-set"))
    assert "\n" not in str(error.value)


def test_short_names_know_the_hubs_id_and_field(datasets, monkeypatch):
    asked = []

    def load(name, subset, **options):
        asked.append((name, subset, options["split"], options["streaming"]))
        field = "content" if "refinedweb" in name else "text"
        return datasets.Dataset.from_dict({field: ["one", "two"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name in sources.HUB:
        assert read(DataConfig(source="huggingface", name=name)) == ["one", "two"]
    assert read(DataConfig(source="huggingface", name="fineweb", subset="sample-10BT")) == ["one", "two"]
    assert [ask[:2] for ask in asked] == [
        ("tiiuae/falcon-refinedweb", "default"),
        ("allenai/c4", "en"),
        ("HuggingFaceFW/fineweb", "default"),
        ("HuggingFaceFW/fineweb", "sample-10BT"),
    ]
    assert {ask[2:] for ask in asked} == {("train", True)}


@pytest.mark.parametrize(
    ("source", "module", "hint"),
    [("huggingface", "datasets", r"pip install -e .\[hf\]"), ("tfds", "tensorflow_datasets", "pip install tensorflow")],
)
def test_a_missing_library_is_named_with_its_remedy(monkeypatch, source, module, hint):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=hint):
        read(DataConfig(source=source, name="x"))


def test_real_wikipedia_and_wikitext(shared, tmp_path):
    wikipedia = DataConfig(
        source="text",
        files=(str(shared / "enwiki" / "val.jsonl.xz"),),
        cache_dir=str(tmp_path),
        validation_fraction=0.1,
    )
    prepared = prepare(wikipedia)
    assert prepared.train.documents + prepared.validation.documents == 300
    wikitext = str(shared / "wikitext-2" / "valid.txt")
    other = prepare(dataclasses.replace(wikipedia, files=(wikitext,), validation_fraction=1.0))
    text_bytes = other.validation.tokens - other.validation.documents
    assert text_bytes == (shared / "wikitext-2" / "valid.txt").stat().st_size
    assert len(other.train) == 0 and other.validation.documents > 100
