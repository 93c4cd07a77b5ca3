"""ArceeForCausalLM: Llama whose MLP is two matrices and an activation, squared ReLU by default."""

from jaxstab.exchange.families.llama import ATTENTION, BIASES, ENDS, HEAD_SIZE, KEYS, MLP, NORMS
from jaxstab.exchange.family import Family, Key

ACTIVATIONS = {
    "relu2": "relu2",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}

ARCEE = Family(
    architecture="ArceeForCausalLM",
    model_type="arcee",
    modules={**ENDS, **NORMS, **ATTENTION, **MLP},
    keys=(
        *KEYS,
        HEAD_SIZE,
        Key("hidden_act", "mlp", "relu2", ACTIVATIONS),
        Key("rms_norm_eps", "norm_eps", 1e-5),
        *BIASES,
    ),
    ours={},
)
