"""Coming from AdamW and from other Muons: what they call otherwise, their numbers, their state."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from reference.optimizers import ReferenceMuon, polar_exact
from torch_specgd import Muon
from torch_specgd.groups.foreign import in_own_words
from torch_specgd.groups.from_adamw import RATE


def pair() -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"wd": 0.3}, {"weight_decay": 0.3}),
        ({"learning_rate": 0.3}, {"lr": 0.3}),
        ({"mu": 0.8}, {"momentum": 0.8}),
        ({"momentum_beta": 0.8}, {"momentum": 0.8}),
        ({"algorithm": "muon"}, {"use_muon": True}),
        ({"algorithm": "adamw", "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6},
         {"use_muon": False, "adamw_betas": (0.8, 0.9), "adamw_eps": 1e-6}),
        ({"use_fallback": True, "betas": (0.8, 0.9)},
         {"use_muon": False, "adamw_betas": (0.8, 0.9)}),
        ({"use_muon": False, "eps": 1e-6}, {"adamw_eps": 1e-6}),
        ({"use_muon": None, "eps": 1e-6}, {"eps": 1e-6}),
        ({"lr": 0.02, "adamw_lr": 0.001}, {"lr": 0.02, "adamw_lr_ratio": 0.05}),
        ({"adamw_wd": 0.0}, {"adamw_weight_decay": 0.0}),
        ({"adjust_lr": "rms_norm"}, {"adjust_lr_fn": "match_rms_adamw"}),
        ({"amsgrad": False, "fused": True, "decoupled_weight_decay": True}, {}),
    ],
)  # fmt: skip
def test_names_of_others_are_taken(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    """A key that is ignored is a run at another rate than the one that was asked for."""
    p = pair()[given.get("algorithm") == "adamw" or given.get("use_muon") is False]
    group = Muon([{"params": [p], **given}]).param_groups[0]
    assert {key: group[key] for key in wanted} == wanted
    assert not (given.keys() - wanted.keys() - {"use_muon", "lr"}) & group.keys() - {"eps"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"betas": (0.9, 0.95)}, "no 'betas'.*adamw_betas.*from_adamw"),
        ({"use_muon": True, "betas": (0.9, 0.95)}, "no 'betas'"),
        ({"amsgrad": True}, "no 'amsgrad' in a group, got True"),
        ({"differentiable": True}, "no 'differentiable'"),
        ({"decoupled_weight_decay": False}, "no 'decoupled_weight_decay'"),
        ({"algorithm": "lion"}, "no 'algorithm' in a group, got 'lion': 'muon' or 'adamw'"),
        ({"adjust_lr": "other"}, "no 'adjust_lr'"),
        ({"use_adjusted_lr": True}, "match_rms_adamw"),
        ({"wd": 0.1, "weight_decay": 0.2}, "'weight_decay' once, got 'wd' as well"),
        ({"lr": 0.0, "adamw_lr": 0.1}, "needs an lr above 0"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Muon([{"params": [pair()[0]], **given}])


def test_groups_of_the_reference_implementation_take_adamws_step() -> None:
    """`use_muon=False` groups with AdamW's own names, as KellerJordan's MuonWithAuxAdam has."""
    w, b = pair()
    other = nn.Parameter(b.detach().clone())
    settings = {"lr": 3e-4, "betas": (0.5, 0.6), "eps": 1.0, "weight_decay": 0.01}
    optimizer = Muon(
        [{"params": [w], "use_muon": True}, {"params": [b], "use_muon": False, **settings}]
    )
    reference = torch.optim.AdamW([other], **settings, fused=True)
    for _ in range(4):
        w.grad, b.grad = torch.randn_like(w), torch.randn_like(b)
        other.grad = b.grad.clone()
        optimizer.step()
        reference.step()
    assert torch.equal(b, other)


def test_a_checkpoint_of_the_reference_implementation_loads() -> None:
    """Momentum is the same mean of gradients there; its AdamW counts steps in plain numbers."""
    w, b = pair()
    state = {
        0: {"momentum_buffer": torch.randn(8, 8)},
        1: {"exp_avg": torch.randn(8), "exp_avg_sq": torch.rand(8), "step": 3},
    }
    muon = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1, "use_muon": True, "params": [0]}
    adam = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0}
    saved = {"state": state, "param_groups": [muon, {**adam, "use_muon": False, "params": [1]}]}
    optimizer = Muon([{"params": [w]}, {"params": [b]}])
    optimizer.load_state_dict(copy.deepcopy(saved))
    assert torch.equal(optimizer.state[w]["momentum_buffer"], state[0]["momentum_buffer"])
    assert optimizer.state[b]["step"].item() == 3
    assert optimizer.param_groups[1]["adamw_betas"] == (0.9, 0.95)
    w.grad, b.grad = torch.randn_like(w), torch.randn_like(b)
    optimizer.step()


def test_a_checkpoint_of_adamw_is_refused_with_the_way_to_go() -> None:
    w, b = pair()
    saved = torch.optim.AdamW([w, b]).state_dict()
    with pytest.raises(ValueError, match=r"Muon\.from_adamw\(optimizer, model\)"):
        Muon([w, b]).load_state_dict(saved)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 9))


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    net(torch.arange(9)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_from_adamw_carries_rates_decay_and_state() -> None:
    """What is not orthogonalized goes on bit by bit; a matrix keeps its first moment."""
    net = model()
    groups = [
        {"params": [net[1].weight, net[3].weight], "weight_decay": 0.3},
        {"params": [net[0].weight, net[1].bias, net[3].bias], "lr": 0.002, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.001, betas=(0.8, 0.9), fused=True)
    for _ in range(3):
        step(net, adamw)
    moment = adamw.state[net[1].weight]["exp_avg"].clone()
    other, other_adamw = copy.deepcopy((net, adamw))
    optimizer = Muon.from_adamw(adamw, net)
    assert torch.equal(optimizer.state[net[1].weight]["momentum_buffer"], moment)
    by_muon = {p: g for g in optimizer.param_groups for p in g["params"]}
    hidden, aside = by_muon[net[1].weight], by_muon[net[1].bias]
    assert hidden["lr"] == pytest.approx(RATE * 0.001)
    assert hidden["lr"] * hidden["weight_decay"] == pytest.approx(0.001 * 0.3)
    assert (aside["lr"], aside["weight_decay"], aside["adamw_betas"]) == (0.002, 0.0, (0.8, 0.9))
    step(net, optimizer)
    step(other, other_adamw)
    assert torch.equal(net[0].weight, other[0].weight)
    assert torch.equal(net[3].bias, other[3].bias)
    assert not torch.equal(net[1].weight, other[1].weight)
    printed = repr(optimizer)
    assert "lr 0.0038 (3.8 times AdamW's), decay 0.0789 (the same a step)" in printed
    assert "betas and eps; first moments as momentum of 1, second moments left behind" in printed
    assert "AdamW: lr 0.002, decay 0, betas (0.8, 0.9), eps 1e-08; all moments of 3" in printed


@pytest.mark.parametrize("shape", [(24, 24), (48, 12), (12, 48)])
def test_from_adamw_takes_the_step_that_it_says(shape: tuple[int, int]) -> None:
    """In float64: the decay of AdamW's step, and RATE times its root mean square on pure noise."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(301)]
    net = nn.Sequential(nn.Linear(3, shape[1]), nn.Linear(*shape[::-1], bias=False)).double()
    net.append(nn.Linear(shape[0], 3).double())
    w, lr, decay = net[1].weight, 0.001, 0.3
    adamw = torch.optim.AdamW([w], lr=lr, betas=(0.9, 0.95), weight_decay=decay)
    for w.grad in noise[:-1]:
        before = (1 - lr * decay) * w.detach()
        adamw.step()
    size = (w.detach() - before).square().mean().sqrt()
    # What "match_rms_adamw" takes for typical is a round number. A sample of 576 entries is off by
    # 3 % or so in its root mean square.
    assert size == pytest.approx(0.2 * lr, rel=0.2)
    reference = ReferenceMuon(
        w.detach(), polar_exact, lr=RATE * lr, weight_decay=decay / RATE, momentum=0.95,
        nesterov=True, match_rms=True,
    )  # fmt: skip
    reference.b = adamw.state[w]["exp_avg"].clone()
    before, w.grad = (1 - lr * decay) * w.detach(), noise[-1]
    Muon.from_adamw(adamw, net, compute_dtype="float32").step()
    reference.step(noise[-1])
    step, wanted = w.detach() - before, reference.w - before
    assert wanted.square().mean().sqrt() == pytest.approx(RATE * 0.2 * lr, rel=1e-6)
    # "auto" brings singular values to 1 within 5 %.
    assert (step - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda ps: torch.optim.AdamW(ps, amsgrad=True), "amsgrad=True has no counterpart"),
        (lambda ps: torch.optim.Adam(ps, weight_decay=0.1), "must be decoupled"),
        (lambda ps: torch.optim.SGD(ps, lr=0.1), "without betas and eps"),
        (lambda ps: {"lr": 0.1, "beta": 0.9}, r"got \['beta'\]"),
        (lambda ps: torch.optim.AdamW([nn.Parameter(torch.ones(2))]), "none of the model's"),
    ],
)
def test_from_adamw_refuses_what_it_cannot_carry(source: Any, message: str) -> None:
    net = model()
    with pytest.raises(ValueError, match=message):
        Muon.from_adamw(source(net.parameters()), net)


def test_own_words_leave_own_groups_alone() -> None:
    """The groups of one Muon are another one's: `eps` is Muon's there."""
    group = Muon([pair()[1]]).param_groups[0]
    assert in_own_words({**group, "use_muon": False}, 0.1) == {**group, "use_muon": False}
