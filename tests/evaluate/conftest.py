"""A small language model on bytes, over every device of this process."""

import jax
import pytest

from jaxstab.data import load_tokenizer
from jaxstab.evaluate import LanguageModel
from jaxstab.initialize import draw, he, scaled
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import EmbeddingConfig
from jaxstab.model.transformer import Transformer, read_table
from jaxstab.scale import MeshConfig, make_mesh

SMALL = {"width": 16, "layers": 2, "heads": 2, "vocabulary": 264, "max_length": 48, "remat": "none"}


def bytes_model(**changes):
    config = ModelConfig(**SMALL | {"embedding": EmbeddingConfig(method="unit")} | changes)
    weights = jax.tree.map(lambda leaf: 2 * leaf, draw(jax.random.key(0), scaled(read_table(config), he())))
    return LanguageModel(make_mesh(MeshConfig(fsdp=-1)), Transformer(config), weights, load_tokenizer("bytes"))


@pytest.fixture(scope="session")
def lm():
    return bytes_model()
