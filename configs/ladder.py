"""The ladder: sizes of one recipe, on which a method has to win before it is tried on the next.

    python main.py data tokenizer --config=configs/ladder.py:rung=1 --vocabulary=2048 --out=runs/ladder-2048.json
    python main.py compare --config=configs/ladder.py:rung=1 --methods=small,he,wesar,wesar_wide \
        --learning_rates=1e-3,3e-3,1e-2 --seeds=1,2,3 --workdir=runs/ladder-1

| rung | blocks x width | vocabulary | parameters | tokens |
|---|---|---|---|---|
| 0 | 6 x 64 | 2,048 | 0.56M | 0.16M |
| 1 | 12 x 64 | 2,048 | 0.85M | 0.4M |
| 2 | 12 x 128 | 4,096 | 3.4M | 1.6M |
| 3 | 16 x 192 | 8,192 | 10.2M | 6.6M |
| 4 | 16 x 384 | 16,384 | 40.9M | 26M |
| 5 | 12 x 768 | 32,000 | 134.1M | 105M |

Its files are `corpus/train-*.jsonl.xz`, any text with one document a line, and below `corpora/` WikiText-2 and LAMBADA
(docs/evaluate.md), on which a run is evaluated at its end; without them: --config.eval.texts="()"
--config.eval.benchmarks="()". Full measurements are taken ten times a run.

From rung 1 on tokens grow fourfold a rung. Every rung has its own tokenizer, trained as above with its vocabulary. Rung
0 is `make results-small`, which shows that all of it works and decides nothing. `compare` sets the method's keys, the
learning rate and the seed of every run; docs/compare.md has the rest.
"""

from ml_collections import ConfigDict

from jaxstab.config import parse_argument
from jaxstab.train.config import default_config

# blocks, width, vocabulary, batch, steps
RUNGS = {
    "1": (12, 64, 2048, 8, 200),
    "2": (12, 128, 4096, 16, 400),
    "3": (16, 192, 8192, 32, 800),
    "4": (16, 384, 16384, 64, 1600),
    "5": (12, 768, 32000, 128, 3200),
    "0": (6, 64, 2048, 8, 80),
}


def get_config(argument: str = "") -> ConfigDict:
    layers, width, vocabulary, batch, steps = RUNGS[parse_argument(argument, rung=tuple(RUNGS))["rung"]]
    config = default_config()
    config.model.layers, config.model.width, config.model.heads = layers, width, width // 64 if width > 64 else 2
    config.model.vocabulary, config.model.max_length = 0, 256
    config.model.embedding.method = "unit"
    config.init.method = "small"

    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup = steps // 10
    config.train.steps, config.train.batch_size = steps, batch
    config.train.loss_chunk = 32

    config.data.source, config.data.files = "text", ("corpus/train-*.jsonl.xz",)
    config.data.tokenizer = f"runs/ladder-{vocabulary}.json"
    config.data.length = 256

    config.eval.every, config.eval.final_batches = 0, 32
    config.eval.texts = ("wikitext=corpora/wikitext-2/test.txt",)
    config.eval.benchmarks, config.eval.benchmark_data, config.eval.benchmark_limit = ("lambada",), "corpora", 500
    config.eval.sample_length = 0
    config.stability.measure, config.stability.measure_every = "full", max(20, steps // 10)
    config.stability.incidents = 0  # high rates have many, and each would keep a checkpoint
    config.checkpoint.every, config.checkpoint.keep_last = max(100, steps // 4), 1
    config.log.tensorboard_every = 0
    return config
