"""Update rules, clipping and schedules against PyTorch: whole trajectories of the same weights and gradients."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab.config import from_config_dict
from jaxstab.optimize import SCHEDULES, Hypers, OptimizerConfig, build
from jaxstab.optimize.schedules import with_warmup
from jaxstab.table import Row

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")

RATE, DECAY = 0.05, 0.1
SHAPES = {
    "q": ("q_proj", (3, 4, 6), True),
    "down": ("down_proj", (3, 6, 4), True),
    "embed": ("embed_tokens", (7, 4), False),
    "norm": ("norm", (3, 4), True),
}
TABLE = {
    name: Row(name, role, shape, (None,) * len(shape), stacked, decay=1.0)
    for name, (role, shape, stacked) in SHAPES.items()
}


def draw(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: scale * rng.standard_normal(row.shape) for name, row in TABLE.items()}


WEIGHTS = draw(0)
FEW = [draw(seed, scale) for seed, scale in enumerate([1.0, 0.3, 5.0, 1.0, 1e-2, 2.0], 1)]
MANY = [draw(seed, 1 + seed % 3) for seed in range(1, 70)]


def train(gradients, **values):
    """The weights after every step, in float64."""
    values = {"warmup": 0, "schedule": {"method": "constant"}, **values}
    with jax.enable_x64(True):
        chain = build(from_config_dict(OptimizerConfig, values), TABLE, len(gradients))
        update = jax.jit(chain.update.update)
        weights = jax.tree.map(jnp.asarray, WEIGHTS)
        clip, state, trajectory = chain.clip.init(weights), chain.update.init(weights), []
        for gradient in gradients:
            gradient, clip = chain.clip.update(jax.tree.map(jnp.asarray, gradient), clip)
            updates, state = update(gradient, state, weights, hypers=Hypers(RATE, DECAY))
            weights = optax.apply_updates(weights, updates)
            trajectory.append(jax.tree.map(np.asarray, weights))
    return trajectory


def layers(tree):
    """The matrices and vectors of one layer each, in an order of their own; transposed, as PyTorch has them."""
    found = {}
    for name, row in TABLE.items():
        for layer, x in enumerate(tree[name] if row.stacked else [tree[name]]):
            found[f"{name}{layer}"] = x.T
    return found


def train_torch(gradients, make, max_norm=np.inf):
    """The weights after every step; `make(parameters by name)` gives the optimizers."""
    parameters = {name: torch.nn.Parameter(torch.tensor(x.copy())) for name, x in layers(WEIGHTS).items()}
    optimizers, trajectory = make(parameters), []
    for gradient in gradients:
        for name, x in layers(gradient).items():
            parameters[name].grad = torch.tensor(x.copy())
        torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm)
        for one in optimizers:
            one.step()
        trajectory.append({name: p.detach().numpy().copy() for name, p in parameters.items()})
    return trajectory


def adamw(parameters):
    settings = {"lr": RATE, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": DECAY}
    return [torch.optim.AdamW(parameters.values(), **settings)]


ADAM = {"b1": 0.8, "b2": 0.9, "eps": 1e-3}


@pytest.mark.parametrize("max_norm", [1e9, 2.0])
def test_adamw_and_global_norm(max_norm):
    clip = {"method": "global_norm", "global_norm": {"max_norm": max_norm}}
    ours = train(FEW, rule={"method": "adamw", "adamw": ADAM}, clip=clip)
    theirs = train_torch(FEW, adamw, max_norm)
    for tree, expected in zip(ours, theirs, strict=True):
        for name, x in layers(tree).items():
            # clip_grad_norm_ adds 1e-6 to the norm.
            np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("rms", "adjust"), [(0.2, "match_rms_adamw"), (0.0, "original")])
def test_muon(rms, adjust, monkeypatch):
    # PyTorch iterates in bfloat16; the iteration is what is compared here, and not its rounding.
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())

    def make(parameters):
        hidden = {name: p for name, p in parameters.items() if name.startswith(("q", "down"))}
        rest = {name: p for name, p in parameters.items() if name not in hidden}
        settings = {"lr": RATE, "weight_decay": DECAY, "momentum": 0.8, "adjust_lr_fn": adjust}
        return [torch.optim.Muon(hidden.values(), **settings), *adamw(rest)]

    rule = {"method": "muon", "muon": {"momentum": 0.8, "rms": rms, **ADAM}}
    ours = [layers(WEIGHTS), *map(layers, train(MANY, rule=rule, clip={"method": "none"}))]
    theirs = [layers(WEIGHTS), *train_torch(MANY, make)]
    # Optax corrects the bias of Nesterov momentum, PyTorch doesn't: the first update is the same, and so are those
    # before which the correction has faded, 0.8**60 being 2e-6.
    for step in (1, *range(61, len(MANY) + 1)):
        for name in ours[0]:
            found, expected = (w[step][name] - (1 - RATE * DECAY) * w[step - 1][name] for w in (ours, theirs))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_adamc_decays_by_the_square_of_the_schedule_in_the_blocks():
    """pytorch-optimizer's AdamC, whose groups say which layers are normalised; it is told the schedule's rates."""
    third_party = pytest.importorskip("pytorch_optimizer", reason="make parity installs it")
    peak = len(FEW)
    shape = with_warmup(SCHEDULES["cosine"](0.1), 2, peak)

    def make(parameters):
        blocks = {name: p for name, p in parameters.items() if name.startswith(("q", "down", "norm"))}
        rest = [p for name, p in parameters.items() if name not in blocks]
        groups = [{"params": list(blocks.values()), "normalized": True}, {"params": rest}]
        settings = {"betas": (0.8, 0.9), "eps": 1e-12, "weight_decay": DECAY}  # it adds eps elsewhere
        optimizer = third_party.AdamC(groups, lr=RATE, max_lr=RATE, **settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(shape(jnp.asarray(step))))
        return [optimizer, Stepped(schedule)]

    ours = train(
        FEW,
        rule={"method": "adamw", "adamw": ADAM | {"eps": 1e-12}},
        clip={"method": "none"},
        decay={"method": "adamc"},
        schedule={"method": "cosine"},
        warmup=2,
    )
    for tree, expected in zip(ours, train_torch(FEW, make), strict=True):
        for name, x in layers(tree).items():
            np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-7)


class Stepped:
    """A schedule, stepped like an optimizer."""

    def __init__(self, schedule):
        self.step = schedule.step


@pytest.mark.parametrize(("rms", "scale"), [(0.0, "preserve_norm"), (0.2, "match_rms")])
def test_normuon(rms, scale, monkeypatch):
    """pytorch-optimizer's NorMuon, iterating in our precision; its momentum has no bias correction, which fades."""
    third_party = pytest.importorskip("pytorch_optimizer", reason="make parity installs it")
    module = importlib.import_module("pytorch_optimizer.optimizer.muon.normuon")
    iterate = functools.partial(module.zero_power_via_newton_schulz_5, dtype=torch.float64)
    monkeypatch.setattr(module, "zero_power_via_newton_schulz_5", iterate)

    def make(parameters):
        hidden = [p for name, p in parameters.items() if name.startswith(("q", "down"))]
        muon = {"lr": RATE, "weight_decay": DECAY, "momentum": 0.8, "beta2": 0.9, "update_scale": scale}
        groups = [{"params": hidden, "use_muon": True, **muon}]
        groups += [{"params": [p for n, p in parameters.items() if not n.startswith(("q", "down"))], "use_muon": False}]
        return [third_party.NorMuon(groups, foreach=False)]

    rule = {"method": "normuon", "normuon": {"momentum": 0.8, "unit_decay": 0.9, "rms": rms, **ADAM}}
    many = MANY + MANY
    ours = [layers(WEIGHTS), *map(layers, train(many, rule=rule, clip={"method": "none"}))]
    theirs = [layers(WEIGHTS), *train_torch(many, make)]
    for step in range(125, len(many) + 1):  # 0.9**60 of the moments is of updates that were the same by then
        for name in (name for name in ours[0] if name.startswith(("q", "down"))):
            found, expected = (w[step][name] - (1 - RATE * DECAY) * w[step - 1][name] for w in (ours, theirs))
            factor = np.linalg.norm(found) / np.linalg.norm(expected)
            np.testing.assert_allclose(found, expected * factor, rtol=5e-3, atol=1e-4)


def test_spam():
    """pytorch-optimizer's SPAM, with every entry of the momentum, over two restarts; its epsilon is elsewhere."""
    third_party = pytest.importorskip("pytorch_optimizer", reason="make parity installs it")

    def make(parameters):
        settings = {"threshold": 6, "update_proj_gap": 25, "grad_accu_steps": 5, "warmup_epoch": 7, "eps": 1e-12}
        return [third_party.SPAM(parameters.values(), lr=RATE, betas=(0.8, 0.9), **settings)]

    options = {"threshold": 6.0, "interval": 25, "grace": 5, "rewarm": 7, **ADAM, "eps": 1e-12}
    ours = train(
        MANY,
        rule={"method": "spam", "spam": options},
        clip={"method": "none"},
        decay_factors=tuple(f"{row.role}=0" for row in TABLE.values()),
    )
    for tree, expected in zip(ours, train_torch(MANY, make), strict=True):
        for name, x in layers(tree).items():
            np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-7)


def rates(steps, *schedulers, milestones=()):
    """PyTorch's learning rate of each update, from a peak of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made = [scheduler(optimizer) for scheduler in schedulers]
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, made, list(milestones)) if milestones else made[0]
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def line(start, end, steps):
    return lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, start, end, steps)


def flat(optimizer):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 1)


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, 0.1)


@pytest.mark.parametrize(
    ("name", "options", "schedulers", "milestones"),
    [
        ("cosine", {"floor": 0.1}, [cosine], []),
        ("linear", {"floor": 0.2}, [line(1.0, 0.2, 40)], []),
        ("constant", {}, [flat], []),
        ("warmup_stable_decay", {"decay": 0.25, "floor": 0.1}, [flat, line(1.0, 0.1, 10)], [30]),
    ],
)
def test_schedules(name, options, schedulers, milestones):
    shape = SCHEDULES[name](**options)
    ours = [float(with_warmup(shape, 0, 40)(jnp.asarray(update))) for update in range(41)]
    np.testing.assert_allclose(ours, rates(41, *schedulers, milestones=milestones), rtol=1e-5)
    # After a warmup of five updates, the first at a fifth, the same shape over what remains.
    warm = [float(with_warmup(shape, 5, 45)(jnp.asarray(update))) for update in range(46)]
    np.testing.assert_allclose(warm, [*rates(5, line(0.2, 1.0, 4)), *ours], rtol=1e-5)
