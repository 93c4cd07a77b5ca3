"""Deep GPT-2s after Chung et al. 2024: token embedding variability and multi-head low-rank attention.

    python main.py --config=configs/tev_mlra.py:layers=48,model=mlra --workdir=runs/mlra-48
    python main.py describe --config=configs/tev_mlra.py:layers=192,model=gpt2

The paper compares GPT-2, GPT-2 with MLRA and GPT-2 with sigmaReparam at 48, 96 and 192 blocks. It reports that MLRA
has the smallest gradient variance of the three (Figure 2), that GPT-2 with 192 blocks failed in five attempts of
five, and that at 48 blocks, over 1B tokens, the mean TEV and the gradient variance follow the same trend (Figure 3).

Only the abstract, the structure and the figures' captions were at hand: what follows is this project's choice. Width
768 with 12 heads, GPT-2's architecture and initial scale (normal 0.02, o_proj and down_proj times 1/sqrt(2N)) and
BPE; MLRA factorises query, key and value at rank d/2, which leaves their number of parameters as it was; 1B tokens of
FineWeb in batches of 0.5M; AdamW (0.9, 0.95), decay 0.1, 6e-4 after 100 steps of warmup.
"""

from ml_collections import ConfigDict

from jaxstab.config import parse_argument
from jaxstab.train.config import default_config

METHODS = {"gpt2": "identity", "mlra": "mlra", "sigma_reparam": "sigma_reparam"}
LENGTH = 1024
BATCH = 512
TOKENS = 10**9


def get_config(argument: str = "") -> ConfigDict:
    chosen = parse_argument(argument, layers=("48", "96", "192"), model=tuple(METHODS))
    config = default_config()

    config.model.width, config.model.heads = 768, 12
    config.model.layers = int(chosen["layers"])
    config.model.vocabulary = 50257
    config.model.max_length = LENGTH
    config.model.norm = "layernorm"
    config.model.positions = "learned"
    config.model.mlp = "gelu_tanh"
    config.model.bias = True
    config.model.dtype = "bfloat16"
    config.model.tie_embeddings = True

    config.init.method = "normal"
    config.reparam.method = METHODS[chosen["model"]]

    config.optimizer.learning_rate = 6e-4
    config.optimizer.weight_decay = 0.1
    config.train.z_loss = 0.0
    config.train.batch_size = BATCH
    config.train.steps = TOKENS // (BATCH * LENGTH)
    config.mesh.fsdp = -1

    config.data.source = "huggingface"
    config.data.name = "fineweb"
    config.data.subset = "sample-10BT"
    config.data.tokenizer = "tokenizers/encoder.json"
    config.data.length = LENGTH
    # The records that the run reads, and 1% more: with more steps, raise it too.
    config.data.max_tokens = round(1.01 * config.train.steps * config.train.batch_size * (LENGTH + 1))
    return config
