"""What `main.py compare --methods=...` calls a method: the keys of the config that make it.

A method has no learning rate: each is tried at all rates of the grid. Those of Nishida et al. 2024 have the standard
deviations of stored matrices that the paper found best, at width 2048; narrow models want larger ones
(docs/results/first-run.md), which `wesar_wide` has: sigma 0.025 in place of 0.0063.

Controls that are no method are axes: --vary=model.tie_embeddings=False,True, --vary=optimizer.clip_on=raw,effective,
--vary=optimizer.rule.adamw.b2=0.95,0.999, --vary=reparam.wesar.sigma=0.0032,0.0063,0.0126,0.025,0.05 (with --methods
of WeSaR alone, of which the tuning's cost is that many runs more).
"""

from typing import Any

HE = {"init.method": "he", "model.embedding.method": "unit"}
SMALL = {"init.method": "small", "model.embedding.method": "unit"}
WESAR = {**HE, "reparam.method": "wesar"}
FIXUP = {  # Zhang et al. 2019: in place of norms, with its scalars
    "init.method": "fixup",
    "reparam.method": "fixup",
    "model.norm_placement.method": "none",
    "model.embedding.method": "scaled",
    "model.bias": True,
}
MULTIPLIERS = {
    "reparam.method": "learnable_multipliers",
    "optimizer.decay_factors": ("gate=0.02",),
    "optimizer.clip_vectors": False,
}

METHODS: dict[str, dict[str, Any]] = {
    "config": {},  # as it is given: the baseline on a config of one's own, or of a model from elsewhere
    # Initial scales
    "small": SMALL,
    "he": HE,
    "xavier": {"init.method": "xavier", "model.embedding.method": "unit"},
    "megatron": {"init.method": "megatron", "model.embedding.method": "unit"},
    "plain": {"init.method": "small", "model.embedding.method": "plain"},  # Takase et al.'s Vanilla
    "autoinit": {"init.method": "autoinit"},  # Bingham and Miikkulainen 2021
    "fixup": FIXUP,
    # Searched scales: Dauphin and Schoenholz 2019 (MetaInit); Yang et al. 2022 (NIO); Zhu et al. 2021 (GradInit), on
    # WeSaR too
    "metainit": {**SMALL, "init_search.method": "metainit"},
    "gradinit": {**SMALL, "init_search.method": "gradinit"},
    "nio": {**SMALL, "init_search.method": "nio"},
    "wesar_gradinit": {**WESAR, "init_search.method": "gradinit"},
    # Nishida et al. 2024 (WeSaR), Tables 6 and 7, whose other rows are small, he, sigma_reparam and weight_norm
    "wesar": WESAR,
    "wesar_wide": {**WESAR, "reparam.wesar.sigma": 0.025},
    "wesar_small": {**WESAR, **SMALL},
    "wesar_fixed": {**WESAR, "reparam.wesar.trainable_gates": False},
    "weight_norm": {**HE, "reparam.method": "weight_norm"},
    # Zhai et al. 2023
    "sigma_reparam": {**HE, "reparam.method": "sigma_reparam"},
    "sigma_reparam_post": {**HE, "reparam.method": "sigma_reparam", "model.norm_placement.method": "post"},
    # Noci et al. 2022
    "residual_scaling": {**HE, "reparam.method": "residual_scaling"},
    "residual_scaling_small": {**SMALL, "reparam.method": "residual_scaling"},
    # The control of WeSaR: its rate for every matrix, without its gates; clipped alike under clip_on=effective
    "rescaled_rates": {**HE, "reparam.method": "rescaled_rates"},
    "rescaled_rates_small": {**SMALL, "reparam.method": "rescaled_rates"},  # of wesar_small
    "rescaled_rates_wide": {**HE, "reparam.method": "rescaled_rates", "reparam.rescaled_rates.sigma": 0.025},
    # Falcon-LLM Team 2026, its decay and its clipping
    "multipliers": {**SMALL, **MULTIPLIERS},
    "multipliers_both": {**SMALL, **MULTIPLIERS, "reparam.learnable_multipliers.shape": "both"},
    # Takase et al. 2025 (Spike No More), whose Vanilla is plain
    "embed_detach": {"init.method": "megatron", "model.embedding.method": "detach"},
    "scaled_embed": {"init.method": "megatron", "model.embedding.method": "scaled"},
    "embed_norm": {"init.method": "megatron", "model.embedding.method": "layer_norm"},
    # Chung et al. 2024 (TEV): factors whose product has the backbone's standard deviation, the control of which is
    # small; and factors drawn with 0.02, whose product is smaller, with the control of full rank and that size
    "mlra": {**SMALL, "reparam.method": "mlra"},
    "mlra_normal": {**SMALL, "reparam.method": "mlra", "reparam.mlra.std": 0.02},
    "mlra_normal_control": {
        **SMALL,
        "reparam.method": "mlra",
        "reparam.mlra.std": 0.02,
        "reparam.mlra.control": True,
    },
    # What the field does. qk_norm has z-loss 1e-4 and beta2 0.95 beside it, the defaults: Wortsman et al. 2023
    "qk_norm": {**SMALL, "model.qk_norm": True},
    # Kim et al. 2025 (Peri-LN); OLMo 2 (2025)
    "peri": {**SMALL, "model.norm_placement.method": "peri"},
    "reordered": {**SMALL, "model.norm_placement.method": "reordered", "model.qk_norm": True},
    "sandwich": {**SMALL, "model.norm_placement.method": "peri", "model.norm_placement.peri.exponent": 0.5},  # Trinity
    # Controls that failed elsewhere: Li et al. 2024 (Mix-LN); Zhu et al. 2025 (DyT); Chen et al. 2025 (Derf)
    "mix_ln": {**SMALL, "model.norm_placement.method": "mix"},
    "dyt": {**SMALL, "model.norm": "dyt"},
    "derf": {**SMALL, "model.norm": "derf"},
    # Qiu et al. 2025 (gated attention); gpt-oss (sinks); DeepSeek-V4's clamp
    "gated_heads": {**SMALL, "model.attention_gate": "head"},
    "gated_elements": {**SMALL, "model.attention_gate": "element"},
    "sink": {**SMALL, "model.attention_sink": True},
    "swiglu": {**SMALL, "model.mlp": "swiglu"},  # the clamp's control, with half as many parameters again in an MLP
    "mlp_clamp": {**SMALL, "model.mlp": "swiglu", "model.mlp_clamp": 10.0},
    "zero_outputs": {**SMALL, "init.method": "normal", "init.normal.zero_outputs": True},
    # Stollenwerk et al. 2026, in place of the z-loss; without either
    "mu_centering": {**SMALL, "optimizer.projection.method": "mu_centering", "train.z_loss": 0.0},
    "no_z_loss": {**SMALL, "train.z_loss": 0.0},
    # Jordan et al. 2024; Amsel et al. 2025 (Polar Express); Li et al. 2025 (NorMuon); Liang et al. 2024
    # (cautious); Marin 2026 (AdamW by batch)
    "muon": {**SMALL, "optimizer.rule.method": "muon"},
    "muon_per_head": {**SMALL, "optimizer.rule.method": "muon", "optimizer.rule.muon.per_head": True},  # Kimi K3
    "polar_express": {**SMALL, "optimizer.rule.method": "muon", "optimizer.rule.muon.coefficients": "polar_express"},
    "normuon": {**SMALL, "optimizer.rule.method": "normuon"},
    "cautious_adamw": {**SMALL, "optimizer.rule.method": "cautious_adamw"},
    "batch_adamw": {**SMALL, "optimizer.rule.method": "batch_adamw"},  # at the batch it was tuned for: beta2 is 0.999
    # Huang et al. 2025, with their own clipping alone
    "spam": {**SMALL, "optimizer.rule.method": "spam", "optimizer.clip.method": "none"},
    # Decay: Defazio 2025 (AdamC); Chen et al. 2025 (cautious); OLMo 2; Wen et al. 2025 (hyperball)
    "adamc": {**SMALL, "optimizer.decay.method": "adamc"},
    "cautious_decay": {**SMALL, "optimizer.decay.method": "cautious"},
    "embeddings_undecayed": {**SMALL, "optimizer.decay_factors": ("embed_tokens=0",)},
    "adamh": {**SMALL, "optimizer.decay.method": "hyperball"},
    "muonh": {**SMALL, "optimizer.rule.method": "muon", "optimizer.decay.method": "hyperball"},
    # Clipping: Wortsman et al. 2023 (StableAdamW); Wang et al. 2025 (AdaGC); Kumar et al. 2025 (ZClip)
    "stable_adamw": {**SMALL, "optimizer.rule.method": "stable_adamw", "optimizer.clip.method": "none"},
    "adagc": {**SMALL, "optimizer.clip.method": "adagc"},
    "zclip": {**SMALL, "optimizer.clip.method": "zclip"},
    "update_clip": {**SMALL, "optimizer.update_clip.method": "recent_norms"},  # Marin 32B's
    "unclipped": {**SMALL, "optimizer.clip.method": "none"},
}
