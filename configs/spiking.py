"""A run that spikes by itself, in two minutes on one core: the run on which responses to spikes are tried.

    python main.py --config=configs/spiking.py --config.train.seed=0 --workdir=runs/spiking-0
    python main.py --config=configs/spiking.py --config.stability.on_spike=rollback --workdir=runs/rolled-back

Eight blocks of width 32 without any norm, on bytes of English Wikipedia in `corpus/` (or --config.data.files=...), at a
rate five times their best, with Adam's slow second moment (beta2 0.999), a gradient clipped at 1 and logits
capped at 30, so that what follows stays finite. Expect a training loss near 2.4 nats per byte after 250 steps and then,
within tens of steps, 7 and more. docs/results/recovery.md has the runs, and what helped.
"""

from ml_collections import ConfigDict

from jaxstab.train.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.width, config.model.layers, config.model.heads = 32, 8, 2
    config.model.vocabulary, config.model.max_length = 0, 32
    config.model.mlp, config.model.remat = "relu", "none"
    config.model.norm_placement.method = "none"
    config.model.logits_softcap = 30.0
    config.init.method = "small"

    config.optimizer.learning_rate, config.optimizer.warmup = 2.5e-2, 150
    config.optimizer.schedule.method = "constant"
    config.optimizer.rule.adamw.b2 = 0.999
    config.train.steps, config.train.batch_size, config.train.loss_chunk = 600, 32, 32
    config.train.z_loss = 0.0

    config.data.source, config.data.files = "text", ("corpus/train-00000-*.jsonl.xz",)
    config.data.length, config.data.max_tokens = 32, 5_000_000
    config.eval.every, config.eval.final_batches = 0, 64
    config.checkpoint.every = 25
    config.log.tensorboard_every = 0
    return config
