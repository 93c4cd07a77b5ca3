"""The models of Nishida et al. 2024 (WeSaR), Tables 3, 10 and 11.

    python main.py --config=configs/wesar.py:size=1.3b,method=wesar,setting=rapid --workdir=runs/wesar-1.3b
    python main.py describe --config=configs/wesar.py:size=13b,method=small

The paper trains 30B tokens of RefinedWeb with a vocabulary of 32,000 and reports perplexities (WikiText / LAMBADA):

    130M  Small, rapid 26.57 / 33.56   Small, stable 37.68 / 40.41   WeSaR 25.07 / 31.89
    1.3B  Small, rapid 16.55 / 26.29   Small, stable 21.44 / 28.81   WeSaR 14.51 / 22.87
    13B   Small, rapid 12.72 / 21.79   Small, stable 18.66 / 25.34   WeSaR 12.05 / 21.57
    1.3B, rapid: He 16.70 / 26.50, WeSaR over Small 15.91 / 24.37, WeSaR with fixed gates 15.21 / 25.61

To train on text of your own instead of RefinedWeb, which needs `pip install -e .[hf]` and a network:

    --config.data.source=text --config.data.files='corpus/*.jsonl.zst' --config.data.tokenizer=tokenizer.json

The paper leaves open, and this project chooses: the schedule (cosine to a tenth, as Llama, its model), no decay of
gates and norms, Adam's eps 1e-8 (PyTorch's default), z-loss 1e-4 (it prints "16e-4" across a split cell), untied
embeddings (its Table 1 lists W_p apart), attention across documents, and which 32,000 pieces: data.tokenizer names a
SentencePiece model of Llama's size, which the paper's vocabulary agrees with.
"""

from ml_collections import ConfigDict

from jaxstab.config import parse_argument
from jaxstab.train.config import default_config

SIZES = {"130m": (768, 12, 12), "1.3b": (2048, 24, 16), "13b": (5120, 40, 40)}
METHODS = {
    "wesar": ("wesar", "he"),
    "small": ("identity", "small"),
    "he": ("identity", "he"),
    "wesar_small": ("wesar", "small"),
    "wesar_fixed": ("wesar", "he"),
}
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

    config.reparam.method, config.init.method = METHODS[chosen["method"]]
    config.reparam.wesar.trainable_gates = chosen["method"] != "wesar_fixed"

    batch, config.optimizer.learning_rate, config.optimizer.warmup = SETTINGS[chosen["setting"]]
    config.train.batch_size = batch // LENGTH
    config.train.steps = CORPUS // batch
    config.mesh.fsdp = -1

    config.data.source = "huggingface"
    config.data.name = "refinedweb"
    config.data.tokenizer = "tokenizers/tokenizer.model"
    config.data.length = LENGTH
    config.data.validation_fraction = 0.001
    return config
