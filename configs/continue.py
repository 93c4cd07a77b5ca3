"""A recipe for a model from elsewhere, whose pre-training goes on (docs/export.md).

    python main.py import --from=models/pythia-160m --config=configs/continue.py --workdir=runs/pythia
    python main.py --workdir=runs/pythia

The model is the imported one; this says how it is trained: 1,000 steps at a fifth of a usual peak rate, warmed up
again since the moments of the optimizer begin at zero, with a steady rate and a linear end.
"""

from ml_collections import ConfigDict

from jaxstab.train.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.vocabulary = 0

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup = 50
    config.optimizer.schedule.method = "warmup_stable_decay"

    config.train.steps = 1000
    config.train.batch_size = 16
    config.data.length = 256
    config.data.max_tokens = 5_000_000

    config.eval.every = 250
    config.checkpoint.every = 250
    return config
