"""What the papers report, by the names of configs/methods.py, which `main.py compare` sets its own order beside.

Perplexities, the lower the better; where a paper has several runs, their standard deviation. Sizes and tokens are far
above the ladder's: what can be compared is an order, no value.
"""

from jaxstab.compare import Published

NISHIDA = "Nishida et al. 2024 (WeSaR)"
TAKASE = "Takase et al. 2025 (Spike No More), by a translation"

PUBLISHED = (
    Published(
        f"{NISHIDA}, Table 6: 1.3B, 10B tokens, five runs",
        {
            "small": {"wikitext": (20.64, 0.52), "lambada": (29.50, 0.53)},
            "weight_norm": {"wikitext": (18.87, 0.59), "lambada": (27.69, 0.86)},
            "sigma_reparam": {"wikitext": (25.26, 1.65), "lambada": (30.74, 0.74)},
            "sigma_reparam_post": {"wikitext": (23.64, 1.03), "lambada": (30.56, 0.89)},
            "residual_scaling": {"wikitext": (23.15, 0.37), "lambada": (31.03, 0.20)},
            "residual_scaling_small": {"wikitext": (23.56, 1.03), "lambada": (30.78, 0.35)},
            "wesar": {"wikitext": (17.74, 0.05), "lambada": (27.52, 0.28)},
        },
        runs=5,
    ),
    Published(
        f"{NISHIDA}, Table 7: 1.3B, 30B tokens, one run",
        {
            "small": {"wikitext": (16.55, None), "lambada": (26.29, None)},
            "he": {"wikitext": (16.70, None), "lambada": (26.50, None)},
            "wesar": {"wikitext": (14.51, None), "lambada": (22.87, None)},
            "wesar_small": {"wikitext": (15.91, None), "lambada": (24.37, None)},
            "wesar_fixed": {"wikitext": (15.21, None), "lambada": (25.61, None)},
        },
    ),
    Published(
        f"{TAKASE}: 350M, one run",
        {
            "plain": {"wikitext": (30.03, None), "lambada": (24.73, None)},
            "embed_detach": {"wikitext": (30.69, None), "lambada": (26.93, None)},
            "embed_norm": {"wikitext": (29.85, None), "lambada": (25.03, None)},
            "scaled_embed": {"wikitext": (29.86, None), "lambada": (24.37, None)},
        },
    ),
    Published(
        f"{TAKASE}: 1.7B, one run",
        {
            "plain": {"wikitext": (22.58, None), "lambada": (15.22, None)},
            "embed_detach": {"wikitext": (22.00, None), "lambada": (13.88, None)},
            "embed_norm": {"wikitext": (21.29, None), "lambada": (13.00, None)},
            "scaled_embed": {"wikitext": (21.29, None), "lambada": (12.53, None)},
        },
    ),
)
