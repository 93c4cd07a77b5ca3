"""The models of Takase et al. 2025, Spike No More: small sub-layers and a large shortcut.

    python main.py --config=configs/spike_no_more.py:size=1.7b,method=scaled_embed --workdir=runs/scaled-embed
    python main.py describe --config=configs/spike_no_more.py:size=13b,method=embed_ln

All methods but `xavier` draw N(0, 2/(5d)), with o_proj and down_proj times 1/sqrt(2N); `xavier` draws Xavier
everywhere, without the depth. The paper reports perplexities (WikiText / LAMBADA):

                  vanilla         embed_detach    embed_ln        scaled_embed
    350M          30.03 / 24.73   30.69 / 26.93   29.85 / 25.03   29.86 / 24.37
    1.7B          22.58 / 15.22   22.00 / 13.88   21.29 / 13.00   21.29 / 12.53
    13B, 3e-4     spikes          -               -               14.47 / 5.97
    13B, 1e-4     15.12 / 6.50    -               -               15.25 / 6.53

At 1.7B vanilla explodes near step 13,000. From the paper (by a translation): C4, GPT-2's BPE, learning rates, beta2,
fp16 (bf16 here), clipping at 1.0 and about 38B, 38B and 105B tokens. Remembered, not checked: the shapes, 50,000
updates. This project's choice: learned positions, biases, GELU by tanh and tied embeddings, as in Megatron's GPT, which
the paper builds on; weight decay 0.01; cosine to a tenth after 2,000 steps of warmup.

What decays: every matrix but the embedding (which is lm_head, too) and the learned positions, and no bias or norm.
Megatron-LM leaves embeddings out, citing the paper: their decay makes the shortcut small again. When the paper was
written it did not, and the paper, which changed it by a few lines, says nothing of it and published no code:
--config.optimizer.decay_factors="()" decays them, too.
"""

from ml_collections import ConfigDict

from jaxstab.config import parse_argument
from jaxstab.train.config import default_config

# width, blocks, heads, peak learning rate, beta2, sequences in a batch
SIZES = {
    "350m": (1024, 24, 16, 5e-4, 0.999, 768),
    "1.7b": (2304, 24, 24, 5e-4, 0.999, 768),
    "13b": (5120, 40, 40, 3e-4, 0.95, 2048),
}
EMBEDDINGS = {
    "vanilla": "plain",
    "embed_detach": "detach",
    "embed_ln": "layer_norm",
    "scaled_embed": "scaled",
    "xavier": "plain",
}
LENGTH = 1024


def get_config(argument: str = "") -> ConfigDict:
    chosen = parse_argument(argument, size=tuple(SIZES), method=tuple(EMBEDDINGS))
    width, layers, heads, rate, b2, batch_size = SIZES[chosen["size"]]
    config = default_config()

    config.model.width, config.model.layers, config.model.heads = width, layers, heads
    config.model.vocabulary = 50257
    config.model.max_length = LENGTH
    config.model.norm = "layernorm"
    config.model.positions = "learned"
    config.model.mlp = "gelu_tanh"
    config.model.bias = True
    config.model.tie_embeddings = True
    config.model.dtype = "bfloat16"
    config.model.embedding.method = EMBEDDINGS[chosen["method"]]
    config.init.method = "xavier" if chosen["method"] == "xavier" else "megatron"

    config.optimizer.learning_rate = rate
    config.optimizer.rule.adamw.b2 = b2
    config.optimizer.warmup = 2000
    config.optimizer.decay_factors = ("embed_tokens=0", "embed_positions=0")  # see above
    config.train.steps = 50_000
    config.train.batch_size = batch_size
    config.train.z_loss = 0.0
    config.mesh.fsdp = -1

    config.data.source = "huggingface"
    config.data.name = "c4"
    config.data.tokenizer = "tokenizers/encoder.json"
    config.data.length = LENGTH
    # The records that the run reads, and 1% more: with more steps, raise it too.
    config.data.max_tokens = round(1.01 * config.train.steps * config.train.batch_size * (LENGTH + 1))
    config.data.validation_fraction = 0.001
    return config
