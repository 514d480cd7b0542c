"""State dicts that no GradientDirection has saved: refused by name, and nothing has changed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from warmstart import GradientDirection

WRONG = (None, True, -1, 2.5, "3", [], {}, float("nan"), torch.ones(2), object())


def watched(seed: int = 0, reliability: bool = True) -> GradientDirection:
    """A direction that has seen three batches."""
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    direction = GradientDirection(net, reliability=reliability, alpha=0.2)
    g = torch.Generator().manual_seed(seed)
    for _ in range(3):
        direction.update(
            {n: torch.randn(p.shape, generator=g) for n, p in direction.parameters.items()}
        )
    return direction


def mutants() -> list[tuple[str, Callable[[dict[str, Any]], object]]]:
    """One wrong thing each."""
    out: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
        ("an unknown key", lambda s: s.update(step=3)),
        ("a key that is no text", lambda s: s.update({7: 3})),
        ("another parameter", lambda s: s["directions"].update(x=torch.ones(2))),
        ("a lost parameter", lambda s: s["directions"].pop("0.bias")),
        ("lost halves", lambda s: s["odd_batches"].pop("1.weight")),
    ]
    for key in ("alpha", "num_batches", "directions", "odd_batches"):
        out.append((f"no {key}", lambda s, k=key: s.pop(k)))
        for i, value in enumerate(WRONG):
            what = f"{key} {type(value).__name__} {i}"
            out.append((what, lambda s, k=key, v=value: s.update({k: v})))
    for part in ("directions", "odd_batches"):
        for name in ("0.weight", "1.bias"):
            for what, change in (
                ("shape", lambda x: x[..., :1]),
                ("one more dimension", lambda x: x[None]),
                ("integers", lambda x: x.int()),
                ("complex", lambda x: x.to(torch.complex64)),
                ("nan", lambda x: x * float("nan")),
                ("infinity", lambda x: x / 0.0),
                ("a list", lambda x: x.tolist()),
                ("nothing", lambda x: None),
                ("a number", lambda x: 3.0),
            ):
                out.append(
                    (
                        f"{part} {name} {what}",
                        lambda s, p=part, n=name, c=change: s[p].update({n: c(s[p][n])}),
                    )
                )
    return out


@pytest.mark.parametrize("change", [c for _, c in mutants()], ids=[what for what, _ in mutants()])
def test_refused_states_change_nothing(change: Callable[[dict[str, Any]], object]) -> None:
    """A refused load that has half happened goes on with a mixture of two runs."""
    direction, state = watched(), copy.deepcopy(watched(seed=1).state_dict())
    before = copy.deepcopy(direction.state_dict())
    change(state)
    with pytest.raises((TypeError, ValueError), match=r"\w+ \w+") as refused:
        direction.load_state_dict(state)
    assert "\n" not in str(refused.value)
    torch.testing.assert_close(direction.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("state", [None, 3, [], "state"])
def test_what_is_no_mapping(state: object) -> None:
    direction = watched()
    before = copy.deepcopy(direction.state_dict())
    with pytest.raises(TypeError, match="state_dict must be a mapping"):
        direction.load_state_dict(state)
    torch.testing.assert_close(direction.state_dict(), before, rtol=0, atol=0)


def test_legal_states_are_taken_whole() -> None:
    """Other precisions are cast, halves that are not asked for are left out."""
    saved = watched(seed=1).state_dict()
    saved["directions"] = {n: x.double() for n, x in saved["directions"].items()}
    for reliability in (True, False):
        direction = watched(reliability=reliability)
        direction.load_state_dict(saved)
        assert (direction.alpha, direction.num_batches) == (0.2, 3)
        for n, x in saved["directions"].items():
            assert torch.equal(direction[n], x.float())
