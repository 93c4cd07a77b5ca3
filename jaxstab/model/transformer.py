"""A decoder-only Transformer as a pure function of a plain tree of weights.

    hidden_BTD = model.apply({"params": weights}, tokens_BT, method="hidden")

The modules declare every matrix once, `[in, out]`, with its name and logical axes. They have no initial scales and know
nothing of reparameterization: `jaxstab.table` reads the matrices off them, and `jaxstab.initialize` draws these.

Shapes: B batch, T length, D width, H query heads, G key-value heads, K head size, F MLP width, V vocabulary, L layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Int

from jaxstab import table
from jaxstab.config import build_method
from jaxstab.model.activations import ACTIVATIONS
from jaxstab.model.attention import attention_entropy, fused_attention, reference_attention, visible_attention
from jaxstab.model.cache import Window, extended
from jaxstab.model.config import ModelConfig
from jaxstab.model.embeddings import EMBEDDINGS
from jaxstab.model.layers import Linear, declared, norm_layer
from jaxstab.model.loss import capped
from jaxstab.model.placements import PLACEMENTS, Branch, Placement
from jaxstab.model.positions import rotary_tables, rotate
from jaxstab.model.variances import variances_read
from jaxstab.numerics import widened

OF_HEADS = ("q_proj", "k_proj", "v_proj", "o_proj")
ROLES = {
    rf"{name}/(kernel|embedding)$": name for name in (*table.READERS, *table.BRANCH_OUTPUTS, *table.EMBEDDINGS)
} | {r"(scale|alpha)$": "norm", r"(bias|shift|sinks)$": "bias"}


# What every block can sow, by the names that `Transformer.intermediates` takes.
ATTENTION_INTERMEDIATES = ("max_attention_logit", "attention_entropy")
MLP_INTERMEDIATES = ("dead_units", "max_activation")


def reads_logits(intermediates: Collection[str]) -> bool:
    """Whether any of these needs attention whose logits are in memory."""
    return not set(ATTENTION_INTERMEDIATES).isdisjoint(intermediates)


REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attention"),
    ),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["block_input"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def _sow(module: Any, name: str, value: Callable[[], Array]) -> None:
    """Computes and sows a value if its name is among the module's `intermediates`."""
    if name in module.intermediates:
        module.sow("intermediates", name, value())


def sown(variables: Mapping[str, Any]) -> dict[str, Array]:
    """What the blocks of an `apply` with mutable=["intermediates"] have sown, by name: `[L, ...]`."""
    leaves = jax.tree_util.tree_leaves_with_path(variables.get("intermediates", {}))
    return {path[-2].key: value for path, value in leaves}


class Attention(nn.Module):
    """Causal self-attention with grouped-query heads.

    It sows what `intermediates` names: the largest visible logit as max_attention_logit and attention_entropy, `[H]`
    each, keys and values. With a window, the collection "cache" holds those of all tokens so far, and is added to.
    """

    config: ModelConfig
    intermediates: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, x_BTD: Array, rotary_2TK: Array | None, segments_BT: Array | None, window: Window | None = None
    ) -> Array:
        config = self.config
        batch, length, width = x_BTD.shape
        kv_heads = config.kv_heads or config.heads

        def heads(name: str, count: int, axis: str, norm: str = "") -> Array:
            x = Linear(config, count * config.head_dim, ("embed", axis), config.bias or config.qkv_bias, name=name)(
                x_BTD
            )
            if norm and config.qk_norm_joint:
                x = norm_layer(config, norm, axis)(x)
            x = x.reshape(batch, length, count, config.head_dim)
            return norm_layer(config, norm, None)(x) if norm and not config.qk_norm_joint else x

        q_BTHK = heads("q_proj", config.heads, "heads", "q_norm" if config.qk_norm else "")
        k_BTGK = heads("k_proj", kv_heads, "kv_heads", "k_norm" if config.qk_norm else "")
        v_BTGK = heads("v_proj", kv_heads, "kv_heads")
        if rotary_2TK is not None:
            q_BTHK, k_BTGK = rotate(q_BTHK, rotary_2TK), rotate(k_BTGK, rotary_2TK)
        _sow(self, "keys", lambda: k_BTGK)
        _sow(self, "values", lambda: v_BTGK)
        sinks_H = self.param("sinks", declared(("heads",)), (config.heads,)) if config.attention_sink else None
        if window is not None:
            k_BSGK, v_BSGK = extended(self, "keys", k_BTGK, window), extended(self, "values", v_BTGK, window)
            out_BTHK, _ = visible_attention(
                q_BTHK, k_BSGK, v_BSGK, window.visible_BTS, config.attention_softcap, sinks_H
            )
        elif config.attention_softcap or reads_logits(self.intermediates):
            out_BTHK, z_BHTS = reference_attention(
                q_BTHK, k_BTGK, v_BTGK, segments_BT, config.attention_softcap, sinks_H
            )
            _sow(self, "max_attention_logit", lambda: jnp.max(z_BHTS, axis=(0, 2, 3)))
            _sow(self, "attention_entropy", lambda: attention_entropy(z_BHTS))
        else:
            out_BTHK = fused_attention(
                q_BTHK,
                k_BTGK,
                v_BTGK,
                segments_BT,
                "chunked" if config.attention == "auto" else config.attention,
                sinks_H,
            )
        if config.attention_gate != "none":
            out_BTHK = self._gated(x_BTD, out_BTHK)
        return Linear(config, width, ("heads", "embed"), config.bias, name="o_proj")(
            out_BTHK.reshape(batch, length, -1)
        )

    def _gated(self, x_BTD: Array, out_BTHK: Array) -> Array:
        """sigmoid(x W_g) times the output, one gate a head or an element, in float32 (Qiu et al. 2025, G1)."""
        per_head = self.config.attention_gate == "head"
        count = self.config.heads * (1 if per_head else self.config.head_dim)
        gate_BTG = Linear(self.config, count, ("embed", "heads"), self.config.bias, name="g_proj")(x_BTD)
        gate_BTHK = jax.nn.sigmoid(widened(gate_BTG)).reshape(*out_BTHK.shape[:3], -1)
        return (out_BTHK * gate_BTHK).astype(out_BTHK.dtype)


class MLP(nn.Module):
    """Two matrices and an activation, or three with `swiglu`.

    It sows what `intermediates` names: dead_units is the fraction of units whose activation reads no positive value
    from any token, max_activation the largest absolute value that down_proj reads.
    """

    config: ModelConfig
    intermediates: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        config = self.config
        mlp_width = config.mlp_width or 4 * config.width
        up_BTF = Linear(config, mlp_width, ("embed", "mlp"), config.bias, name="up_proj")(x_BTD)
        activation = ACTIVATIONS[config.mlp]
        if config.mlp == "swiglu":
            gate_BTF = Linear(config, mlp_width, ("embed", "mlp"), config.bias, name="gate_proj")(x_BTD)
            if config.mlp_clamp:
                gate_BTF, up_BTF = (jnp.clip(x, -config.mlp_clamp, config.mlp_clamp) for x in (gate_BTF, up_BTF))
            hidden_BTF = activation(gate_BTF) * up_BTF
        else:
            gate_BTF = up_BTF
            hidden_BTF = activation(up_BTF)
        _sow(self, "dead_units", lambda: jnp.mean(jnp.max(gate_BTF, axis=(0, 1)) <= 0, dtype=jnp.float32))
        _sow(self, "max_activation", lambda: jnp.max(jnp.abs(hidden_BTF)))
        return Linear(config, config.width, ("mlp", "embed"), config.bias, name="down_proj")(hidden_BTF)


class Block(nn.Module):
    """Attention and MLP branches, joined to the shortcut as the norm placement says."""

    config: ModelConfig
    intermediates: tuple[str, ...] = ()

    def setup(self) -> None:
        config = self.config
        self.placement: Placement = build_method(config.norm_placement, PLACEMENTS)
        self.self_attn = Attention(config, self.intermediates)
        self.mlp = MLP(config, self.intermediates)
        self.input_layernorm = norm_layer(config)
        self.post_attention_layernorm = norm_layer(config)
        self.pre_feedforward_layernorm = norm_layer(config)
        self.post_feedforward_layernorm = norm_layer(config)

    def attention_branch(self, x_BTD: Array, layer: Array, *context: Any) -> Array:
        """The shortcut after attention; `context` is what attention is given besides its input."""

        def attend(x_BTD: Array) -> Array:
            return self.self_attn(x_BTD, *context)

        norms = self.placement.norms
        return self._join(attend, norms.before_attention, norms.after_attention, x_BTD, layer)

    def mlp_branch(self, x_BTD: Array, layer: Array, read_BTD: Array | None = None) -> Array:
        """The shortcut after the MLP, which reads `read_BTD` instead where that is given."""
        norms = self.placement.norms
        return self._join(self.mlp, norms.before_mlp, norms.after_mlp, x_BTD, layer, read_BTD)

    def _join(
        self,
        f: Callable[[Array], Array],
        before: str,
        after: str,
        x_BTD: Array,
        layer: Array,
        read_BTD: Array | None = None,
    ) -> Array:
        norm = getattr(self, before)
        reader = norm if read_BTD is None else lambda _: norm(read_BTD)
        branch = Branch(f, reader, getattr(self, after), layer, self.config.layers)
        return self.placement.join(branch, x_BTD)

    def __call__(self, x_BTD: Array, layer: Array, *context: Any) -> tuple[Array, None]:
        x_BTD = checkpoint_name(x_BTD, "block_input")
        between_BTD = self.attention_branch(x_BTD, layer, *context)
        x_BTD = self.mlp_branch(between_BTD, layer, x_BTD if self.config.parallel else None)
        return nn.with_logical_constraint(x_BTD, ("batch", "length", None)), None


def _stack(config: ModelConfig) -> Any:
    """The blocks as one scanned module, whose parameters lead with a layer axis; block l is called with its number."""
    block = Block if config.remat == "none" else nn.remat(Block, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
    return nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0, "cache": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=config.layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


class Transformer(nn.Module):
    """Embedding, blocks, final norm and lm_head.

    Every block sows in "intermediates" what `intermediates` names, of ATTENTION_INTERMEDIATES (any of which takes the
    reference attention), MLP_INTERMEDIATES and `jaxstab.model.cache`; `sown` reads it.
    """

    config: ModelConfig
    intermediates: tuple[str, ...] = ()

    def setup(self) -> None:
        config = self.config
        self.embed_tokens = nn.Embed(config.vocabulary, config.width, embedding_init=declared(("vocab", "embed")))
        if config.positions == "learned":
            self.embed_positions = nn.Embed(
                config.position_offset + config.max_length,
                config.width,
                embedding_init=declared(("positions", "embed")),
            )
        self.embedding = build_method(config.embedding, EMBEDDINGS)
        self.embed_norm = norm_layer(config)
        self.layers = _stack(config)(config, self.intermediates)
        self.norm = norm_layer(config)
        self.lm_head = Linear(config, config.vocabulary, ("embed", "vocab"))

    def hidden(
        self,
        tokens_BT: Int[Array, "B T"],
        segments_BT: Int[Array, "B T"] | None = None,
        window: Window | None = None,
    ) -> Array:
        """The final normed hidden states `[B, T, D]`, in the compute dtype.

        Args:
          tokens_BT: token ids.
          segments_BT: document numbers; attention stays inside a document where they are given.
          window: where the tokens stand among those of the collection "cache"; see `jaxstab.model.cache`.
        """
        config = self.config
        x_BTD, rotary_2TK = self.embedded(tokens_BT, window and window.positions_BT)
        x_BTD, _ = self.layers(x_BTD, jnp.arange(1.0, config.layers + 1), rotary_2TK, segments_BT, window)
        placement: Placement = build_method(config.norm_placement, PLACEMENTS)
        return self.norm(x_BTD) if placement.final_norm else x_BTD

    def embedded(
        self, tokens_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"] | None = None
    ) -> tuple[Array, Array | None]:
        """The shortcut that enters the first block, `[B, T, D]` in the compute dtype, and the rotary tables."""
        config = self.config
        length = tokens_BT.shape[1] if positions_BT is None else config.max_length
        # Looked up in float32: the gradient of a frequent token is a long sum.
        x_BTD = self.embedding.apply(self.embed_tokens(tokens_BT), self.embed_norm)
        rotary_2TK = None
        if config.positions == "learned":
            assert length <= config.max_length, f"{length} tokens, but {config.max_length} learned positions"
            places = jnp.arange(length) if positions_BT is None else positions_BT
            x_BTD = x_BTD + self.embed_positions(config.position_offset + places)
        else:
            rotary_2TK = rotary_tables(length, config.rotary_dim, config.rope_theta)
            rotary_2TK = rotary_2TK if positions_BT is None else rotary_2TK[:, positions_BT]
        return nn.with_logical_constraint(x_BTD.astype(config.dtype), ("batch", "length", None)), rotary_2TK

    def __call__(self, tokens_BT: Int[Array, "B T"], segments_BT: Int[Array, "B T"] | None = None) -> Array:
        """Logits `[B, T, V]` in float32. Training never forms them: see `jaxstab.model.loss`."""
        hidden_BTD = self.hidden(tokens_BT, segments_BT)
        logits_BTV = self.lm_head(widened(hidden_BTD))
        return capped(logits_BTV, self.config.logits_softcap)


def read_table(config: ModelConfig) -> table.Table[table.Effective]:
    """The table of a model's effective weights, without allocating one."""
    tokens = jax.ShapeDtypeStruct((1, config.max_length), jnp.int32)
    variables = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)
    rows = table.read(variables["params"], ROLES)
    if config.tie_embeddings:
        rows["lm_head"]["kernel"] = rows["lm_head"]["kernel"].replace(tied="embed_tokens/embedding")
    variances = functools.cache(lambda: variances_read(config))
    placement: Placement = build_method(config.norm_placement, PLACEMENTS)
    after = (f"layers/{placement.norms.after_attention}/scale", f"layers/{placement.norms.after_mlp}/scale")
    gain = placement.gain(config.layers)

    def finished(row: table.Row) -> table.Row:
        role = row.role
        row = row.replace(reads=lambda: variances().get(role, 1.0))
        row = row.replace(head_dim=config.head_dim) if row.role in OF_HEADS else row
        row = row.replace(value=config.norm_alpha) if row.path.endswith("/alpha") else row
        return row.replace(value=gain) if gain != 1 and row.path in after else row

    return jax.tree.map(finished, rows)
