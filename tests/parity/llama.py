"""Our weights as a LlamaForCausalLM in memory, and the tokenizer of llama2.c's stories260K as Hugging Face's."""

import itertools
import json
import struct

import numpy as np
import torch
import transformers

MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MATRICES += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


def as_llama(config, weights):
    """Of a model with RMSNorm, SwiGLU and rotary embedding."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.mlp_width or 4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads or config.heads,
            max_position_embeddings=config.max_length,
            rms_norm_eps=config.norm_eps,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            tie_word_embeddings=False,
        )
    )
    state = {
        "model.embed_tokens.weight": weights["embed_tokens"]["embedding"],
        "model.norm.weight": weights["norm"]["scale"],
        "lm_head.weight": weights["lm_head"]["kernel"].T,
    }
    for layer, name in itertools.product(range(config.layers), MATRICES + NORMS):
        leaf = weights["layers"]
        for part in name.split("."):
            leaf = leaf[part]
        matrix = leaf["scale"][layer] if name in NORMS else leaf["kernel"][layer].T
        state[f"model.layers.{layer}.{name}.weight"] = matrix
    model.load_state_dict({name: torch.tensor(np.asarray(array)) for name, array in state.items()})
    return model.eval()


def write_stories_tokenizer(binary, path):
    """llama2.c's file of pieces and scores as a tokenizer.json: byte-pair encoding with byte fallback."""
    content, pieces, place = binary.read_bytes(), [], 4
    while place < len(content):
        _, length = struct.unpack_from("fi", content, place)
        pieces.append(content[place + 8 : place + 8 + length].decode(errors="replace"))
        place += 8 + length
    pieces = ["<unk>", "<s>", "</s>", *pieces[3:259], *(piece.replace(" ", "▁") for piece in pieces[259:])]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    merges = []
    for piece in pieces[259:]:
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += sorted(pair for pair in halves if set(pair) <= ranks.keys())
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": pieces[i], **special} for i in range(3)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ranks,
            "merges": merges,
        },
    }
    path.write_text(json.dumps(tokenizer))
