"""The models of Nishida et al. 2024 (WeSaR), Tables 3, 10 and 11.

    python main.py --config=configs/wesar.py:size=1.3b,method=wesar,setting=rapid --workdir=runs/wesar-1.3b
    python main.py describe --config=configs/wesar.py:size=13b,method=small

The paper trains 30B tokens of RefinedWeb with a vocabulary of 32,000 and reports perplexities (WikiText / LAMBADA):

    130M  small, rapid 26.57 / 33.56   small, stable 37.68 / 40.41   wesar 25.07 / 31.89
    1.3B  small, rapid 16.55 / 26.29   small, stable 21.44 / 28.81   wesar 14.51 / 22.87
    13B   small, rapid 12.72 / 21.79   small, stable 18.66 / 25.34   wesar 12.05 / 21.57
    1.3B, rapid (Tables 7 and 12): he 16.70 / 26.50, wesar_small 15.91 / 24.37, wesar_fixed 15.21 / 25.61,
          weight_norm 14.13 / 24.97, sigma_reparam_pre 18.83 / 26.22, sigma_reparam_post 16.52 / 25.58,
          residual_scaling_he 19.05 / 27.36, residual_scaling_small 18.03 / 26.88
    1.3B, 10B tokens, mean (sd) of five runs (Table 6): small 20.64 (.52) / 29.50 (.53), weight_norm 18.87 (.59) / 27.69
          (.86), sigma_reparam_pre 25.26 (1.65) / 30.74 (.74), sigma_reparam_post 23.64 (1.03) / 30.56 (.89),
          residual_scaling_he 23.15 (.37) / 31.03 (.20), residual_scaling_small 23.56 (1.03) / 30.78 (.35),
          wesar 17.74 (.05) / 27.52 (.28); here: --config.train.steps=9536
          --config.data.max_tokens=10100000000

To train on text of your own instead of RefinedWeb, which needs `pip install -e .[hf]` and a network:

    --config.data.source=text --config.data.files='corpus/*.jsonl.zst' --config.data.tokenizer=tokenizer.json

The paper leaves open, and this project chooses: the schedule (cosine to a tenth, as Llama, its model), no decay of
gates and norms, Adam's eps 1e-8 (PyTorch's default), z-loss 1e-4 (it prints "16e-4" across a split cell), untied
embeddings (its Table 1 lists W_p apart), attention across documents, and which 32,000 pieces: data.tokenizer names a
SentencePiece model of Llama's size, which the paper's vocabulary agrees with. The stored std of weight_norm and
sigma_reparam is Table 6's best; all methods use embedding scaling (its section 5.3).
"""

from ml_collections import ConfigDict

from jaxstab.config import parse_argument
from jaxstab.train.config import default_config

SIZES = {"130m": (768, 12, 12), "1.3b": (2048, 24, 16), "13b": (5120, 40, 40)}
# reparameterization, initial scale, norm placement
METHODS = {
    "wesar": ("wesar", "he", "pre"),
    "small": ("identity", "small", "pre"),
    "he": ("identity", "he", "pre"),
    "wesar_small": ("wesar", "small", "pre"),
    "wesar_fixed": ("wesar", "he", "pre"),
    "weight_norm": ("weight_norm", "he", "pre"),
    "sigma_reparam_pre": ("sigma_reparam", "he", "pre"),
    "sigma_reparam_post": ("sigma_reparam", "he", "post"),
    "residual_scaling_he": ("residual_scaling", "he", "pre"),
    "residual_scaling_small": ("residual_scaling", "small", "pre"),
}
# Table 6's best sigma^2.
SIGMA = {"weight_norm": 16e-5, "sigma_reparam_pre": 64e-5, "sigma_reparam_post": 16e-5}
# batch in tokens, peak learning rate, warmup
SETTINGS = {"rapid": (2**20, 1e-3, 100), "stable": (2**22, 5e-4, 2000)}
CORPUS = 30 * 10**9
LENGTH = 2048


def get_config(argument: str = "") -> ConfigDict:
    chosen = parse_argument(argument, size=tuple(SIZES), method=tuple(METHODS), setting=tuple(SETTINGS))
    config = default_config()

    config.model.width, config.model.layers, config.model.heads = SIZES[chosen["size"]]
    config.model.vocabulary = 32000
    config.model.max_length = LENGTH
    config.model.embedding.method = "unit"
    config.model.dtype = "bfloat16"

    config.reparam.method, config.init.method, config.model.norm_placement.method = METHODS[chosen["method"]]
    config.reparam.wesar.trainable_gates = chosen["method"] != "wesar_fixed"
    if chosen["method"] in SIGMA:
        config.reparam[config.reparam.method].sigma = SIGMA[chosen["method"]] ** 0.5
    # Its appendix C.2: gates from 1, and no gradient through the norm.
    config.reparam.sigma_reparam.gate = "one"
    config.reparam.sigma_reparam.differentiate = False

    batch, config.optimizer.learning_rate, config.optimizer.warmup = SETTINGS[chosen["setting"]]
    config.train.batch_size = batch // LENGTH
    config.train.steps = CORPUS // batch
    config.mesh.fsdp = -1

    config.data.source = "huggingface"
    config.data.name = "refinedweb"
    config.data.tokenizer = "tokenizers/tokenizer.model"
    config.data.length = LENGTH
    # The records that the run reads, and 1% more: with more steps, raise it too.
    config.data.max_tokens = round(1.01 * config.train.steps * config.train.batch_size * (LENGTH + 1))
    config.data.validation_fraction = 0.001
    return config
