"""What Muon is given: a model, names and parameters, parameters, or groups of them."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from torch_specgd import Muon, param_groups


def language_model(tied: bool = False) -> nn.ModuleDict:
    model = nn.ModuleDict(
        {
            "tok_embeddings": nn.Embedding(50, 8),
            "layers": nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))]),
            "conv": nn.Conv1d(8, 8, 3),
            "depthwise": nn.Conv1d(8, 8, 3, groups=8),
            "qkv": nn.Linear(8, 24),
            "lm_head": nn.Linear(8, 50),
        }
    )
    if tied:
        model["lm_head"].weight = model["tok_embeddings"].weight
    return model


def stepped(optimizer: Muon, model: nn.Module) -> dict[str, str]:
    """The algorithm of each matrix, told by the state that a step leaves."""
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    return {
        name: "Muon" if "momentum_buffer" in optimizer.state[p] else "AdamW"
        for name, p in model.named_parameters()
        if p.ndim > 1
    }


RIGHT = {
    "tok_embeddings.weight": "AdamW",
    "layers.0.0.weight": "Muon",
    "conv.weight": "Muon",
    "depthwise.weight": "AdamW",
    "qkv.weight": "Muon",
    "lm_head.weight": "AdamW",
}


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_is_routed(tied: bool) -> None:
    """The first call that a reader copies sends embeddings and heads to AdamW."""
    model = language_model(tied)
    optimizer = Muon(model, lr=0.02, weight_decay=0.0)
    assert {g["lr"] for g in optimizer.param_groups} == {0.02}
    expected = {
        name: value for name, value in RIGHT.items() if not tied or name != "lm_head.weight"
    }
    assert stepped(optimizer, model) == expected
    splits = [g["split"] for g in optimizer.param_groups if g["split"]]
    assert splits == [(0, (8, 8, 8))]


def test_names_and_parameters_are_routed() -> None:
    """Where the model is not at hand, its names and shapes say nearly as much."""
    model = language_model()
    optimizer = Muon(model.named_parameters(), lr=0.02)
    assert stepped(optimizer, model) == RIGHT
    splits = [g["split"] for g in optimizer.param_groups if g["split"]]
    assert splits == [(0, (8, 8, 8))]
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_names_without_modules_go_by_shape() -> None:
    """A name of its own says nothing; what says that it is no matrix is believed."""
    named = [
        (name, nn.Parameter(torch.randn(shape)))
        for name, shape in {"w": (4, 3), "b": (3,), "cls_token": (1, 1, 4), "experts": (2, 4, 3),
                            "a.latents": (6, 4), "a.q_proj": (4, 4)}.items()
    ]  # fmt: skip
    routes = {n: g["use_muon"] for g in Muon(named).param_groups for n in g["param_names"]}
    assert routes == {
        "w": True, "b": False, "cls_token": False, "experts": True, "a.latents": False,
        "a.q_proj": True,
    }  # fmt: skip


def test_names_of_parametrized_and_wrapped_layers() -> None:
    """Names of torch.compile, DDP and weight norm lead to the layer that they stand for."""
    model = nn.ModuleDict({"module": language_model()})
    norm = torch.nn.utils.parametrizations.weight_norm
    for name in ("conv", "qkv", "lm_head"):
        norm(model["module"][name])
    routes = {
        n: g["use_muon"]
        for g in Muon(model.named_parameters()).param_groups
        for n in g["param_names"]
    }
    assert routes["module.conv.parametrizations.weight.original1"]
    assert routes["module.qkv.parametrizations.weight.original1"]
    assert not routes["module.conv.parametrizations.weight.original0"]
    assert not routes["module.lm_head.parametrizations.weight.original1"]
    assert not routes["module.tok_embeddings.weight"]


def test_groups_with_names_keep_their_settings() -> None:
    """A group that chooses for itself stays whole; one that does not is routed."""
    model = language_model()
    named = list(model.named_parameters())
    groups = [
        {"params": named[:1], "use_muon": True, "lr": 0.3},
        {"params": named[1:], "weight_decay": 0.25},
    ]
    optimizer = Muon(groups, lr=0.02)
    assert stepped(optimizer, model) == {**RIGHT, "tok_embeddings.weight": "Muon"}
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert {g["weight_decay"] for g in optimizer.param_groups[1:]} == {0.25}


def test_parameters_go_by_shape_with_one_warning() -> None:
    """torch.optim.Muon's call means the same here, and says what it costs a language model."""
    model = language_model()
    with pytest.warns(UserWarning, match=re.escape("(50, 8)")) as seen:
        optimizer = Muon(model.parameters(), lr=0.02)
    assert len(seen) == 1
    assert len(optimizer.param_groups) == 1
    assert set(stepped(optimizer, model).values()) == {"Muon"}


@pytest.mark.parametrize(
    "shapes",
    [
        [(16, 8), (8, 16), (10, 8)],  # an MLP
        [(32, 8), (8, 32)],  # four times as wide inside
        [(4, 3, 3, 3), (10, 64)],
        [(2, 40), (40, 2)],  # an adapter's factors
        [(8, 8)] * 3,
    ],
)
def test_no_warning_for_usual_layers(shapes: list[tuple[int, ...]]) -> None:
    """A warning that is wrong more often than right is switched off by everybody."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Muon([nn.Parameter(torch.randn(shape)) for shape in shapes])
    assert said == []


@pytest.mark.parametrize(
    "shapes",
    [[(50, 8), (8, 8)], [(8, 8), (50, 8)], [(12, 8), (8, 8), (12, 8)]],
)
def test_warning_for_tables(shapes: list[tuple[int, ...]]) -> None:
    """Rows far above columns, or a table for words in and one for words out."""
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    with pytest.warns(UserWarning, match="embedding or an output head"):
        Muon(parameters)
    Muon([{"params": parameters, "use_muon": True}])  # no warning: it is meant
    Muon([p.requires_grad_(False) for p in parameters])


def test_groups_are_used_twice() -> None:
    """The second optimizer has its own rate, and the list is as it was."""
    model = language_model()
    groups = param_groups(model)
    before = [dict(group) for group in groups]
    first = Muon(groups, lr=0.5)
    second = Muon(groups, lr=0.1)
    assert {g["lr"] for g in first.param_groups} == {0.5}
    assert {g["lr"] for g in second.param_groups} == {0.1}
    assert [dict(group) for group in groups] == before
    plain = [{"params": list(model.parameters()), "use_muon": None}]
    Muon(plain, lr=0.5)
    assert Muon(plain, lr=0.1).param_groups[0]["lr"] == 0.1
    later = {"params": [("later", nn.Parameter(torch.randn(3, 3)))]}
    first.add_param_group(later)
    assert set(later) == {"params"}


def test_checkpoint_of_a_routed_model() -> None:
    """Two optimizers of one model have the same groups, whatever wraps it."""
    first, second = language_model(), nn.ModuleDict({"module": language_model()})
    optimizer = Muon(first, lr=0.02)
    stepped(optimizer, first)
    other = Muon(second, lr=0.5)
    other.load_state_dict(optimizer.state_dict())
    buffer = optimizer.state[first["qkv"].weight]["momentum_buffer"]
    assert torch.equal(other.state[second["module"]["qkv"].weight]["momentum_buffer"], buffer)


@pytest.mark.parametrize("given", [torch.zeros(3, 3), {"params": []}, [], 3, nn.Identity()])
def test_what_is_no_parameters_is_refused(given: Any) -> None:
    """In torch's own words."""
    with pytest.raises((TypeError, ValueError), match=r"params|parameter|iterable"):
        Muon(given)


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_zero_redundancy_optimizer_takes_groups_without_names() -> None:
    """It accepts tensors alone; the routes stay."""
    model = language_model()
    twin = language_model()
    twin.load_state_dict(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of its import
        from torch.distributed.optim import ZeroRedundancyOptimizer

        zero = ZeroRedundancyOptimizer(
            param_groups(model).unnamed(), optimizer_class=Muon, lr=0.02, weight_decay=0.0
        )
    plain = Muon(twin, lr=0.02, weight_decay=0.0)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    zero.step()
    plain.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_lazy_layers_need_a_forward_pass_first() -> None:
    """Without a shape they would count as vectors, for good."""
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))
    for given in (model, model.named_parameters()):
        with pytest.raises(ValueError, match="run a forward pass"):
            Muon(given)
    model(torch.randn(2, 5))
    assert stepped(Muon(model), model) == {"0.weight": "Muon", "2.weight": "AdamW"}
