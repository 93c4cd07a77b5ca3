"""A WeSaR model on bytes of Python's own standard library sources: a first run, minutes on two cores.

    python main.py --config=configs/quickstart.py --workdir=runs/quickstart

Nothing is downloaded. Expect a validation loss near 1.5 nats per byte after 700 steps (perplexity 4.5; 90 seconds on
two cores), and samples that look like Python from afar. On text of your own:

    --config.data.source=text --config.data.files='my/*.txt' --workdir=runs/mine
"""

from ml_collections import ConfigDict

from jaxstab.train.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.width = 128
    config.model.layers = 4
    config.model.heads = 4
    config.model.vocabulary = 0
    config.model.max_length = 128
    config.model.embedding.method = "unit"
    config.model.remat = "none"

    config.reparam.method = "wesar"
    # The paper's sigma suits widths of thousands; at this width a larger one does better (docs/results/first-run.md).
    config.reparam.wesar.sigma = 0.025

    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup = 50
    config.train.steps = 700
    config.train.batch_size = 16
    config.train.loss_chunk = 128

    config.data.source = "stdlib"
    config.data.length = 128
    config.data.validation_fraction = 0.05

    config.eval.every = 175
    config.eval.sample_length = 120
    config.checkpoint.every = 175
    return config
