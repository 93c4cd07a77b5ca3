"""What `main.py compare --methods=...` calls a method: the keys of the config that make it.

A method has no learning rate: each is tried at all rates of the grid. Those of Nishida et al. 2024 have the standard
deviations of stored matrices that the paper found best, at width 2048; narrow models want larger ones
(docs/results/first-run.md), which `wesar_wide` has: sigma 0.025 in place of 0.0063.
"""

from typing import Any

HE = {"init.method": "he", "model.embedding.method": "unit"}
SMALL = {"init.method": "small", "model.embedding.method": "unit"}
WESAR = {**HE, "reparam.method": "wesar"}
MULTIPLIERS = {
    "reparam.method": "learnable_multipliers",
    "optimizer.decay_factors": ("gate=0.02",),
    "optimizer.clip_vectors": False,
}

METHODS: dict[str, dict[str, Any]] = {
    # Initial scales
    "small": SMALL,
    "he": HE,
    "xavier": {"init.method": "xavier", "model.embedding.method": "unit"},
    "megatron": {"init.method": "megatron", "model.embedding.method": "unit"},
    "plain": {"init.method": "small", "model.embedding.method": "plain"},  # without embedding scaling
    # Nishida et al. 2024
    "wesar": WESAR,
    "wesar_wide": {**WESAR, "reparam.wesar.sigma": 0.025},
    "wesar_small": {**WESAR, **SMALL},
    "wesar_fixed": {**WESAR, "reparam.wesar.trainable_gates": False},
    "weight_norm": {**HE, "reparam.method": "weight_norm"},
    "sigma_reparam": {**HE, "reparam.method": "sigma_reparam"},
    "sigma_reparam_post": {**HE, "reparam.method": "sigma_reparam", "model.norm_placement.method": "post"},
    "residual_scaling": {**HE, "reparam.method": "residual_scaling"},
    # Falcon-LLM Team 2026, its decay and its clipping
    "multipliers": {**SMALL, **MULTIPLIERS},
    "multipliers_both": {**SMALL, **MULTIPLIERS, "reparam.learnable_multipliers.shape": "both"},
    # Takase et al. 2025
    "scaled_embed": {"init.method": "megatron", "model.embedding.method": "scaled"},
    "embed_norm": {"init.method": "megatron", "model.embedding.method": "layer_norm"},
    # Chung et al. 2024
    "mlra": {**SMALL, "reparam.method": "mlra"},
    # What the field does
    "qk_norm": {**SMALL, "model.qk_norm": True},
    "peri": {**SMALL, "model.norm_placement.method": "peri"},
    "reordered": {**SMALL, "model.norm_placement.method": "reordered", "model.qk_norm": True},
    "muon": {**SMALL, "optimizer.rule.method": "muon"},
    "normuon": {**SMALL, "optimizer.rule.method": "normuon"},
    "cautious_adamw": {**SMALL, "optimizer.rule.method": "cautious_adamw"},
    "adamc": {**SMALL, "optimizer.decay.method": "adamc"},
    "cautious_decay": {**SMALL, "optimizer.decay.method": "cautious"},
    "embeddings_undecayed": {**SMALL, "optimizer.decay_factors": ("embed_tokens=0",)},
    "adamh": {**SMALL, "optimizer.decay.method": "hyperball"},
    "muonh": {**SMALL, "optimizer.rule.method": "muon", "optimizer.decay.method": "hyperball"},
    "stable_adamw": {**SMALL, "optimizer.rule.method": "stable_adamw", "optimizer.clip.method": "none"},
    "adagc": {**SMALL, "optimizer.clip.method": "adagc"},
    "zclip": {**SMALL, "optimizer.clip.method": "zclip"},
}
