"""A proxy of about 10M parameters for comparing methods on Wikipedia: 16 blocks of width 192, length 256.

    python main.py data tokenizer --config=configs/proxy.py --vocabulary=8192 --out=runs/enwiki-8192.json
    python main.py --config=configs/proxy.py:method=wesar --workdir=runs/proxy-wesar
    python main.py --config=configs/proxy.py:method=small --config.optimizer.learning_rate=1e-2 --workdir=runs/small

The corpus is any set of files: --config.data.files=corpus/*.jsonl.xz is the default, one text per line.

7.1M of its 10.2M parameters are in the blocks. docs/results/first-run.md has what `small`, `he` and `wesar` come to at
three learning rates each.
With a tokenizer of 32,000 pieces most parameters are embeddings, and the rest is as before:

    --config.data.tokenizer=tokenizers/tokenizer.model
"""

from ml_collections import ConfigDict

from jaxstab.config import parse_argument
from jaxstab.train.config import default_config

# reparameterization, initial scale
METHODS = {"wesar": ("wesar", "he"), "small": ("identity", "small"), "he": ("identity", "he")}


def get_config(argument: str = "") -> ConfigDict:
    chosen = parse_argument(argument, method=tuple(METHODS))
    config = default_config()
    config.model.width = 192
    config.model.layers = 16
    config.model.heads = 3
    config.model.vocabulary = 0
    config.model.max_length = 256
    config.model.embedding.method = "unit"
    config.model.remat = "none"

    config.reparam.method, config.init.method = METHODS[chosen["method"]]

    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup = 30
    config.train.steps = 300
    config.train.batch_size = 8
    config.train.loss_chunk = 32

    config.data.source = "text"
    config.data.files = ("corpus/train-*.jsonl.xz",)
    config.data.tokenizer = "runs/enwiki-8192.json"
    config.data.length = 256

    config.eval.every = 100
    config.eval.final_batches = 64
    config.checkpoint.every = 100
    return config
