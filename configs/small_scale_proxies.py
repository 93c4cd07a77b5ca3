"""The defaults of Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities.

    python main.py --config=configs/small_scale_proxies.py:size=10m --workdir=runs/p --config.optimizer.learning_rate=.1
    python main.py --config=configs/small_scale_proxies.py:size=10m,qk_norm=no --workdir=runs/no-qk-norm

The paper trains each size at learning rates from 3e-4 to 3e-1 and reports how far the final loss depends on it.
Without QK-norm the largest attention logit grows with the rate, and every run in which it passed 10,000 diverged;
without z-loss and decay the output logits drift away.

From the paper: AdamW (0.9, 0.95), eps 1e-8, clip 1, independent decay 1e-4, z-loss 1e-4, 5,000 steps of warmup,
100,000 steps, cosine to 1e-5, 256 x 512 tokens, LayerNorm without biases (eps 1e-6), rotary positions, GELU of width
4d, untied embeddings of std 1/sqrt(d), other matrices 1/sqrt(fan_in), C4, a vocabulary of 32,101, bf16. This
project's choice: the widths and depths of the named sizes (12 d^2 N without embeddings), heads of 64, draws that
aren't truncated.
"""

from ml_collections import ConfigDict

from jaxstab.config import parse_argument
from jaxstab.train.config import default_config

SIZES = {"10m": (512, 3), "2.4m": (256, 3), "85m": (768, 12), "1.2b": (2048, 24), "4.8b": (4096, 24)}
LENGTH = 512
LAST_RATE = 1e-5


def get_config(argument: str = "") -> ConfigDict:
    chosen = parse_argument(argument, size=tuple(SIZES), qk_norm=("yes", "no"))
    config = default_config()

    config.model.width, config.model.layers = SIZES[chosen["size"]]
    config.model.heads = config.model.width // 64
    config.model.vocabulary = 32101
    config.model.max_length = LENGTH
    config.model.norm = "layernorm"
    config.model.norm_eps = 1e-6
    config.model.mlp = "gelu_tanh"
    config.model.qk_norm = chosen["qk_norm"] == "yes"
    config.model.dtype = "bfloat16"

    config.init.method = "he"
    config.init.he.gain = 1.0
    config.init.he.depth_scaled = False

    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule.cosine.floor = LAST_RATE / config.optimizer.learning_rate
    config.optimizer.warmup = 5000
    config.optimizer.weight_decay = 1e-4
    config.optimizer.independent_decay = True
    config.train.batch_size = 256
    config.train.steps = 100_000
    config.mesh.fsdp = -1

    config.data.source = "huggingface"
    config.data.name = "c4"
    config.data.tokenizer = "tokenizers/tokenizer.model"
    config.data.length = LENGTH
    # The records that the run reads, and 1% more: with more steps, raise it too.
    config.data.max_tokens = round(1.01 * config.train.steps * config.train.batch_size * (LENGTH + 1))
    config.data.validation_fraction = 0.001
    return config
