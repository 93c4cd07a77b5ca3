"""A grid is what was asked for, or one line that says what is wrong with it."""

import pytest

from configs.methods import METHODS
from jaxstab.compare import read_grid
from jaxstab.config import ConfigError, flatten
from jaxstab.train.config import Config

CONFIG = Config()


def test_every_combination_is_there_once_and_has_its_keys():
    grid = read_grid(
        CONFIG, METHODS, ["small", "wesar"], ["1e-3", "0.01"], ["1", "2"], ["optimizer.weight_decay=0,0.1"]
    )
    assert len(grid.cells) == 2**4 and len({cell.name for cell in grid.cells}) == 16
    assert (
        grid.cells[0].variant == "small, optimizer.weight_decay=0" and len({each.variant for each in grid.cells}) == 4
    )
    cell = next(cell for cell in grid.cells if cell.name == "wesar-0.01-seed2-optimizer.weight_decay=0.1")
    flat = flatten(cell.config)
    assert flat["reparam.method"] == "wesar" and flat["init.method"] == "he"
    assert (flat["optimizer.learning_rate"], flat["optimizer.weight_decay"]) == (0.01, 0.1)
    assert flat["train.seed"] == flat["data.seed"] == 2


def test_a_value_has_one_name_however_it_is_written():
    names = [
        read_grid(CONFIG, METHODS, ["small"], ["1e-3"], ["1"], [f"optimizer.weight_decay={text}"]).cells[0].name
        for text in ("0.1", "0.10", "1e-1", "1", "1.0")
    ]
    of = "small-0.001-seed1-optimizer.weight_decay"
    assert names == [f"{of}=0.1"] * 3 + [f"{of}=1"] * 2


@pytest.mark.parametrize("name", METHODS)
def test_every_named_method_can_be_run(name):
    (cell,) = read_grid(CONFIG, METHODS, [name], [], []).cells
    assert {key: value for key, value in METHODS[name].items() if flatten(cell.config)[key] != value} == {}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((["wesr"], [], [], []), "unknown method 'wesr' in --methods; did you mean wesar?"),
        ((["wesar"], ["fast"], [], []), "--learning_rates takes numbers with commas between them, not 'fast'"),
        ((["wesar"], [], ["1.5"], []), "--seeds takes integers with commas between them, not '1.5'"),
        ((["wesar"], [], ["1", "-1"], []), "--seeds takes integers from 0 on, not -1"),
        ((["wesar"], ["nan"], [], []), "--learning_rates takes finite numbers, not 'nan'"),
        ((["wesar"], ["-1"], [], []), "wesar can't be run with this config: optimizer.learning_rate"),
        ((["wesar"], [], ["1", "1"], []), "the grid has wesar-0.001-seed1 twice"),
        ((["wesar"], [], [], ["optimizer.weight_decay"]), "--vary=optimizer.weight_decay lacks its values"),
        (
            (["wesar"], [], [], ["optimizer.weight_decy=1"]),
            "unknown config key optimizer.weight_decy in --vary; did you",
        ),
        ((["small"], [], [], ["reparam.wesar.sigma=0.01,0.02"]), "--vary=reparam.wesar.sigma has no effect on small"),
        ((["wesar"], [], [], ["train.steps=f(1)"]), "--vary=train.steps=f(1) is no value of that key"),
        ((["wesar"], [], [], ["data.seed=1,2"]), "--vary=data.seed: rates and seeds are --learning_rates and --seeds"),
        ((["wesar"], [], [], ["optimizer.learning_rate=1"]), "rates and seeds are --learning_rates and --seeds"),
        ((["wesar"], [], [], ["optimizer.weight_decay=0.1, 0.10"]), "has a value twice"),
        ((["wesar"], [], [], ["train.steps=3", "train.steps=4"]), "--vary=train.steps is given twice"),
    ],
)
def test_what_is_wrong_is_one_line(given, told):
    methods, rates, seeds, vary = given
    with pytest.raises(ConfigError) as error:
        read_grid(CONFIG, METHODS, methods, rates, seeds, vary)
    assert told in str(error.value) and "\n" not in str(error.value)
