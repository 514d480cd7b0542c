"""State dicts with one thing wrong: the same, refused in one line, or another legal value."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from faults.mutants import mutated, same
from torch_specgd import MomentumWarmup, Muon, SpecGD, SpectrumTracker

SHAPES = ((6, 4), (3, 2, 2, 2), (5,))


class Subject:
    """Something with state, what changes its state, and everything of it that may not change."""

    def __init__(self, make: Callable[[list[nn.Parameter]], Any], owner: Any = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
        self.optimizer = Muon(self.params, lr=0.01) if owner is None else owner(self.params)
        self.subject = make(self.params) if owner is None else make(self.optimizer)
        self.move()

    def move(self) -> None:
        for p in self.params:
            p.grad = torch.ones_like(p)
        if isinstance(self.subject, torch.optim.Optimizer):
            self.subject.step()
        elif isinstance(self.subject, MomentumWarmup):
            self.optimizer.step()
            self.subject.step()
        else:
            self.subject.record(len(self.subject.records))

    def everything(self) -> Any:
        return copy.deepcopy([self.subject.state_dict(), self.optimizer.state_dict()])


def named(params: list[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    return [(f"p{i}", p) for i, p in enumerate(params)]


def two_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:1], "lr": 0.1}, {"params": params[1:], "use_muon": None}]


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "muon": lambda: Subject(lambda p: Muon(p, lr=0.01)),
    "muon-named": lambda: Subject(lambda p: Muon(named(p), lr=0.01, neuron_beta=0.9)),
    "muon-rules": lambda: Subject(
        lambda p: Muon(p, lr=0.01, precondition="eigenbasis", second_moment="element")
    ),
    "muon-groups": lambda: Subject(lambda p: Muon(two_groups(p), state_dtype="bfloat16")),
    "specgd": lambda: Subject(lambda p: SpecGD(p, lr=0.01, momentum=0.9)),
    "specgd-plain": lambda: Subject(lambda p: SpecGD(two_groups(p)[:1], lr=0.01)),
    "warmup": lambda: Subject(lambda o: MomentumWarmup(o, 10), lambda p: Muon(p, lr=0.01)),
    "tracker": lambda: Subject(lambda p: SpectrumTracker(nn.ParameterList(p), every=1)),
}


def outcome(make: Callable[[], Subject], seed: int) -> str:
    subject = make()
    saved = subject.everything()[0]
    damaged, what = mutated(saved, seed)
    subject.move()
    before = subject.everything()
    message = None
    try:
        subject.subject.load_state_dict(damaged)
    except (ValueError, TypeError) as error:
        message = str(error)
    if message is not None:
        assert "\n" not in message, f"{seed}, {what}: {message}"
        assert 0 < len(message) < 600, f"{seed}, {what}: {message}"
        assert same(subject.everything(), before), f"{seed}, {what}: refused, but changed"
        return "refused"
    if same(subject.everything()[0], saved):
        return "same"
    subject.move()
    return "legal"


@pytest.mark.parametrize("name", SUBJECTS)
def test_damaged_state_is_refused_or_legal(name: str) -> None:
    """Nothing else may come of it: no half-loaded object, no error out of its inside."""
    outcomes = Counter(outcome(SUBJECTS[name], seed) for seed in range(120))
    assert set(outcomes) <= {"same", "refused", "legal"}
    assert outcomes["refused"] >= 40, outcomes
