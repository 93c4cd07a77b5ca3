"""What a comparison says ahead that it will take."""

import dataclasses

from jaxstab.compare.ahead import Sample, told
from jaxstab.compare.grid import Cell
from jaxstab.train.config import Config

SAMPLE = Sample(compiling=60.0, step=0.6, memory=10**8)


def cells(count, **changes):
    config = Config()
    train = dataclasses.replace(config.train, steps=100, batch_size=8)
    config = dataclasses.replace(config, train=train, data=dataclasses.replace(config.data, length=256))
    rates = (dataclasses.replace(config.optimizer, learning_rate=rate) for rate in range(1, 1 + count))
    configs = [dataclasses.replace(config, optimizer=each, **changes) for each in rates]
    return [Cell("small", each.optimizer.learning_rate, 1, (), each) for each in configs]


def test_the_time_is_that_of_all_steps_and_of_compiling_what_they_share_once():
    said = told(cells(3), 1, SAMPLE)
    assert said.startswith("614,400 tokens and 1 program; a trial step takes 0.6 s and 100 MB, compiling it 60 s: ")
    assert said.endswith(": about 4 min, and the evaluations")  # 3 x 100 x 0.6 s, and 60 s


def test_a_search_of_initial_scales_is_told_by_the_gradients_that_it_takes():
    search = dataclasses.replace(Config().init_search, method="metainit")  # 500 iterations at 9 gradients
    said = told(cells(1, init_search=search), 1, SAMPLE)
    assert ": about 2 min, at most 45 min of searching initial scales, and the evaluations" in said
