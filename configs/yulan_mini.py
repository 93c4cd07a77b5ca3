"""YuLan-Mini 2.42B (Hu et al. 2024, arXiv:2412.17743), the one large public run with WeSaR: 1.08T tokens.

    python main.py --config=configs/yulan_mini.py --workdir=runs/yulan-mini
    python main.py describe --config=configs/yulan_mini.py

Its WeSaR is a variant: gates on q, k, v and o; one for gate_proj and up_proj together, as it multiplies what the MLP
reads; one on down_proj; one beside every norm and on lm_head; none on the embedding, which is tied and enters times 10.
Gates begin at 0.36515 = √(256/1920), and at that over √(2·56) for o and down, whose branches are 1.4/√56 besides.

From its launch scripts: Adam with eps 1e-15, decay 0.1, peak rate 1e-2 with muP's factor 256/1920 on hidden matrices,
z-loss 1e-4, clipping at 1, warmup, stable rate, decay. Its scripts are those of its last phases; the batch (1,008 of
4,096 tokens), the warmup and that gates decay by 0.1 as well are this project's reading. The data is of its own making:
here it is RefinedWeb's, with any tokenizer of 99,000 pieces in data.tokenizer.
"""

from ml_collections import ConfigDict

from jaxstab.config import parse_argument
from jaxstab.train.config import default_config

LENGTH = 4096


def get_config(argument: str = "") -> ConfigDict:
    parse_argument(argument)
    config = default_config()
    config.model.update(width=1920, layers=56, heads=30, kv_heads=6, mlp_width=4800, vocabulary=99000)
    config.model.update(max_length=LENGTH, norm_eps=1e-6, mlp="swiglu", qkv_bias=True, tie_embeddings=True)
    config.model.embedding.method = "scaled"
    config.model.embedding.scaled.factor = 10.0
    config.model.dtype = "bfloat16"

    config.reparam.method = "wesar"
    config.reparam.wesar.update(gates="shared", sigma=5e-5)
    config.init.method = "yulan_mini"
    config.init.yulan_mini.sigma = 5e-5

    config.optimizer.learning_rate = 1e-2
    config.optimizer.weight_decay = 0.1
    config.optimizer.decay_factors = ("gate=1",)
    config.optimizer.rule.adamw.eps = 1e-15
    config.optimizer.schedule.method = "warmup_stable_decay"
    config.optimizer.schedule.warmup_stable_decay.decay = 0.08
    config.optimizer.warmup = 2433

    config.train.batch_size = 1008
    config.train.steps = 1_080_000_000_000 // (1008 * LENGTH)
    config.mesh.fsdp = -1

    config.data.source = "huggingface"
    config.data.name = "refinedweb"
    config.data.tokenizer = "tokenizers/tokenizer.model"
    config.data.length = LENGTH
    config.data.max_tokens = round(1.01 * config.train.steps * config.train.batch_size * (LENGTH + 1))
    config.data.validation_fraction = 0.001
    return config
