"""From documents to batches: sources, tokenizers, packed records, and the batch at a position."""

from jaxstab.data.batches import Batches, batch_digest, batch_digests, read_ahead, segment_ids
from jaxstab.data.cache import Prepared, cached_split, prepare
from jaxstab.data.config import DataConfig
from jaxstab.data.making import prepare_tfds, train_tokenizer
from jaxstab.data.records import PackedSplit
from jaxstab.data.tokenizers import Tokenizer, load_tokenizer

__all__ = [
    "Batches",
    "DataConfig",
    "PackedSplit",
    "Prepared",
    "Tokenizer",
    "batch_digest",
    "batch_digests",
    "cached_split",
    "load_tokenizer",
    "prepare",
    "prepare_tfds",
    "read_ahead",
    "segment_ids",
    "train_tokenizer",
]
