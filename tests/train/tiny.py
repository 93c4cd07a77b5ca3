"""The smallest run with everything in it: a config for tests, which add data.files, data.cache_dir and a workdir."""

from ml_collections import ConfigDict

from jaxstab.train.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.width = 16
    config.model.layers = 2
    config.model.heads = 2
    config.model.vocabulary = 0
    config.model.max_length = 16
    config.model.remat = "none"
    config.reparam.method = "wesar"
    config.optimizer.warmup = 2
    config.optimizer.clip.global_norm.max_norm = 40.0
    config.train.steps = 8
    config.train.batch_size = 4
    config.train.accumulation = 2
    config.train.loss_chunk = 8
    config.data.source = "text"
    config.data.length = 16
    config.data.validation_fraction = 0.3
    config.data.workers = 1
    config.eval.every = 3
    config.eval.batches = 2
    config.checkpoint.every = 2
    config.log.tensorboard_every = 4
    return config
