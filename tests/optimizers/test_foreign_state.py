"""Checkpoints of other optimizers: loaded with their meaning, or refused in one line.

The state dicts are written down as the packages write them: dion, timm 1.0.31, pytorch_optimizer
4.1.0, KellerJordan's muon and torch.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_specgd import Muon
from torch_specgd.groups.foreign_state import in_own_layout

TRIPLE = (3.4445, -4.7750, 2.0315)


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (6, 4), (4,))]


def buffers(*names: str) -> list[dict[str, Tensor]]:
    """State of the three parameters; the vector's has AdamW's two means."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(6, 4), (6, 4), (4,)]
    made = [torch.rand(s, generator=generator) for s in shapes]
    first, mean, square = names
    return [{first: made[0]}, {first: made[1]}, {mean: made[2], square: made[2] ** 2}]


def dion(**changes: Any) -> dict[str, Any]:
    settings = {
        "lr": 0.02, "mu": 0.95, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01, "step": 3,
        "epsilon": 1e-8, "nesterov": True, "flatten": False, "adjust_lr": "rms_norm",
    }  # fmt: skip
    settings.update(changes)
    matrices = {"algorithm": "muon", **settings, "params": [0, 1]}
    return {
        "state": dict(enumerate(buffers("momentum", "momentum", "variance"))),
        "param_groups": [matrices, {**settings, "algorithm": "adamw", "params": [2]}],
    }


def timm(**changes: Any) -> dict[str, Any]:
    states = buffers("momentum_buffer", "exp_avg", "exp_avg_sq")
    group = {
        "lr": 0.02, "weight_decay": 0.01, "momentum": 0.95, "nesterov": False, "ns_steps": 5,
        "ns_coefficients": "original", "eps": 1e-7, "safety_factor": 1.0,
        "adjust_lr_fn": "rms_to_rms", "conv_mode": "flatten", "normalize_spatial": True,
        "fallback_lr_scale": 0.1, "betas": (0.9, 0.99), "algo": "muon", "scale_eps": False,
        "capturable": False, "verbose": False, "params": [0, 1, 2],
    }  # fmt: skip
    state = [{"use_muon": "exp_avg" not in s, **s} for s in states]
    state[2]["step"] = torch.tensor(3.0)
    return {"state": dict(enumerate(state)), "param_groups": [{**group, **changes}]}


def pytorch_optimizer(**changes: Any) -> dict[str, Any]:
    shared = {"weight_decouple": True, "foreach": None, "step": 3}
    matrices = {
        "use_muon": True, "lr": 0.02, "momentum": 0.95, "nesterov": True, "weight_decay": 0.01,
        "ns_steps": 5, "ns_coeffs": [TRIPLE], "ns_method": "newton_schulz", "ns_reset_steps": (2,),
        "use_adjusted_lr": True, **shared, **changes, "params": [0, 1],
    }  # fmt: skip
    vectors = {
        "use_muon": False, "lr": 0.002, "betas": (0.9, 0.99), "eps": 1e-10, "weight_decay": 0.01,
        **shared, "params": [2],
    }  # fmt: skip
    state = dict(enumerate(buffers("momentum_buffer", "exp_avg", "exp_avg_sq")))
    return {"state": state, "param_groups": [matrices, vectors]}


WRITERS = {"dion": dion, "timm": timm, "pytorch_optimizer": pytorch_optimizer}
RATES = {"dion": 0.02, "timm": 0.002, "pytorch_optimizer": 0.002}


def fitting(saved: dict[str, Any], params: list[nn.Parameter]) -> Muon:
    return Muon([{"params": [params[i] for i in g["params"]]} for g in saved["param_groups"]])


@pytest.mark.parametrize("name", WRITERS)
def test_loads_and_goes_on(name: str) -> None:
    """The next step is that of a Muon and an AdamW with the same settings and means."""
    saved, params = WRITERS[name](), parameters()
    kept = copy.deepcopy(saved)
    optimizer = fitting(saved, params)
    optimizer.load_state_dict(saved)
    scale = 0.05 if name == "dion" else 1.0  # its buffer is a sum: 1 / (1 - 0.95) times the mean
    key = "momentum" if name == "dion" else "momentum_buffer"
    group = optimizer.param_groups[0]
    own = Muon(
        parameters()[:2], lr=0.02, weight_decay=0.01, nesterov=name != "timm",
        ns_coefficients="auto" if name == "dion" else TRIPLE,
        adjust_lr_fn="spectral" if name == "timm" else "match_rms_adamw",
    )  # fmt: skip
    for i, p in enumerate(own.param_groups[0]["params"]):
        assert torch.equal(saved["state"][i][key], kept["state"][i][key])
        own.state[p]["momentum_buffer"] = kept["state"][i][key] * scale
    vector = parameters()[2]
    eps = optimizer.param_groups[-1]["adamw_eps"]
    adamw = torch.optim.AdamW(
        [vector], lr=RATES[name], betas=(0.9, 0.99), eps=eps, weight_decay=0.01
    )
    means = [x for k, x in kept["state"][2].items() if k not in ("step", "use_muon")]
    adamw.state[vector] = {
        "step": torch.tensor(3.0), "exp_avg": means[0], "exp_avg_sq": means[1]
    }  # fmt: skip
    others = [*own.param_groups[0]["params"], vector]
    for p, other in zip(params, others, strict=True):
        p.grad = torch.randn_like(p)
        other.grad = p.grad.clone()
    for each in (optimizer, own, adamw):
        each.step()
    for p, other in zip(params, others, strict=True):
        torch.testing.assert_close(p, other)
    assert group["momentum"] == 0.95
    foreign = {"mu", "algorithm", "beta1", "epsilon", "conv_mode", "betas", "ns_coeffs", "verbose"}
    assert not foreign & group.keys()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (timm(nesterov=True), "timm's with nesterov=True, where NAdamW"),
        (timm(algo="adamuon"), "another algo than 'muon'"),
        (timm(conv_mode="batched"), "another conv_mode than 'flatten'"),
        (dion(num_heads=4), "dion's with num_heads above 1"),
        (pytorch_optimizer(cautious=True), "cautious=True, which Muon has not: keep the weights"),
        (pytorch_optimizer(weight_decouple=False), "no 'weight_decouple' in a group, got False"),
    ],
)
def test_rules_that_muon_has_not_are_refused(saved: dict[str, Any], message: str) -> None:
    optimizer = fitting(saved, parameters())
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message) as caught:
        optimizer.load_state_dict(saved)
    assert "\n" not in str(caught.value)
    assert str(optimizer.state_dict()) == str(before)


def test_adamw_is_refused_before_its_groups_are_counted() -> None:
    """Whoever changes the optimizer and resumes has one group there and several here."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    for kind in (torch.optim.AdamW, torch.optim.Adam):
        with pytest.raises(ValueError, match=r"AdamW, then go on with Muon\.from_adamw\(optimizer"):
            Muon(net).load_state_dict(kind(net.parameters()).state_dict())


def test_other_groups_are_refused_with_what_to_do() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    saved = torch.optim.Muon([net[0].weight, net[1].weight]).state_dict()
    with pytest.raises(ValueError, match="build it with the groups of that run before loading"):
        Muon(net).load_state_dict(saved)


def test_state_of_the_other_algorithm_is_refused_by_name() -> None:
    """timm steps a matrix of fewer than four rows by AdamW; its momentum would start at zero."""
    saved = timm()
    saved["state"][1] = {"use_muon": False, "step": torch.tensor(3.0), "exp_avg": torch.ones(6, 4),
                         "exp_avg_sq": torch.ones(6, 4)}  # fmt: skip
    params = parameters()
    optimizer = fitting(saved, params)
    with pytest.raises(ValueError, match=r"shape \(6, 4\) is AdamW's, but Muon steps it here"):
        optimizer.load_state_dict(saved)


def test_torchs_groups_keep_the_cuts_and_routes_of_here() -> None:
    """Its state dict knows no fused weights: loading it must not glue them together."""
    fused = nn.Parameter(torch.randn(12, 4))
    saved = torch.optim.Muon([fused]).state_dict()
    optimizer = Muon([{"params": [fused], "split": (0, (4, 4, 4)), "use_muon": True}])
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["split"] == (0, (4, 4, 4))
    assert optimizer.param_groups[0]["use_muon"] is True


def test_reordered_groups_go_by_name() -> None:
    """KellerJordan's class sorts its matrices; with names on both sides the order is no matter."""
    a, b = parameters()[:2]
    group = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.0, "use_muon": True}
    saved = {
        "state": {i: {"momentum_buffer": torch.full((6, 4), float(i))} for i in range(2)},
        "param_groups": [{**group, "params": [0, 1], "param_names": ["b", "a"]}],
    }
    optimizer = Muon([{"params": [("a", a), ("b", b)], "use_muon": True}])
    optimizer.load_state_dict(saved)
    assert optimizer.state[a]["momentum_buffer"][0, 0] == 1.0
    assert optimizer.state[b]["momentum_buffer"][0, 0] == 0.0


def test_what_is_no_state_dict_is_left_to_the_checks() -> None:
    for loaded in (None, [], {}, {"state": 3}, {"state": {}, "param_groups": [3]}):
        assert in_own_layout(loaded) == loaded


def test_what_one_rank_of_several_saved_is_refused_until_joined() -> None:
    """The other ranks' matrices would go on without momentum, and nobody would know."""
    params = parameters()
    matrices = [p for p in params if p.ndim == 2]
    group = {"lr": 0.02, "weight_decay": 0.0, "momentum": 0.95, "params": [0, 1]}
    files = [
        {"state": {i: {"momentum_buffer": torch.ones_like(matrices[i])}}, "param_groups": [group]}
        for i in range(2)
    ]
    optimizer = Muon(matrices[:2])
    with pytest.raises(ValueError, match=r"state of 1 of 2 matrices.*join the 'state'"):
        optimizer.load_state_dict(files[0])
    assert not optimizer.state
    for one in files[1:]:
        files[0]["state"].update(one["state"])
    optimizer.load_state_dict(files[0])
    assert all(optimizer.state[p]["momentum_buffer"].eq(1).all() for p in matrices[:2])
