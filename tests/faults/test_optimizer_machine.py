"""Muon and SpecGD through random histories, beside float64 optimizers that are easy to read."""

import copy
from functools import partial
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor, nn

from reference.optimizers import (
    ReferenceMuon,
    ReferenceSpecGD,
    polar_by_polynomials,
    polar_exact,
)
from torch_specgd import Muon, SpecGD
from torch_specgd.triton_kernels import resolve_schedule

SHAPES = ((4, 3), (3, 5), (4,))
TABLE = resolve_schedule("polar_express").coefficients
RATES = st.sampled_from([0.0, 0.01, 0.05, 0.2])


class ReferenceAdamW:
    """AdamW on one vector."""

    def __init__(self, w: Tensor, *, lr: float, decay: float) -> None:
        self.w, self.lr, self.decay = w.double().clone(), lr, decay
        self.m, self.v, self.steps = torch.zeros_like(self.w), torch.zeros_like(self.w), 0

    def step(self, g: Tensor) -> None:
        self.steps += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g * g
        m, v = self.m / (1 - 0.9**self.steps), self.v / (1 - 0.999**self.steps)
        self.w = (1 - self.lr * self.decay) * self.w - self.lr * m / (v.sqrt() + 1e-8)


class ReferenceOfColumns(ReferenceSpecGD):
    """A vector is a matrix of one column."""

    def step(self, g: Tensor) -> None:
        super().step(g.reshape(self.w.shape))


class History(RuleBasedStateMachine):
    """Steps, added groups, loads, deep copies, frozen and missing gradients, other rates."""

    def __init__(self) -> None:
        super().__init__()
        self.seed = 0
        self.params = [self.fresh(shape) for shape in SHAPES]
        self.optimizer = self.make(self.params)
        self.expected = [self.reference(p.detach(), 0.05) for p in self.params]
        self.saved: tuple[Any, list[Any]] | None = None

    def make(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        raise NotImplementedError

    def reference(self, w: Tensor, lr: float) -> Any:
        raise NotImplementedError

    def fresh(self, shape: tuple[int, ...]) -> nn.Parameter:
        return nn.Parameter(self.random(shape))

    def random(self, shape: Any) -> Tensor:
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    @rule(missing=st.sets(st.integers(0, 4)), zeros=st.booleans())
    def step(self, missing: set[int], zeros: bool) -> None:
        for i, (p, reference) in enumerate(zip(self.params, self.expected, strict=True)):
            p.grad = None
            if i in missing or not p.requires_grad:
                continue
            p.grad = torch.zeros_like(p) if zeros and p.ndim == 1 else self.random(p.shape)
            reference.step(p.grad)
        self.optimizer.step()

    @precondition(lambda self: len(self.params) < 5)
    @rule(shape=st.sampled_from(SHAPES), lr=RATES)
    def add_group(self, shape: tuple[int, ...], lr: float) -> None:
        p = self.fresh(shape)
        self.optimizer.add_param_group({"params": [p], "lr": lr})
        self.params.append(p)
        self.expected.append(self.reference(p.detach(), lr))

    @rule(which=st.integers(0, 4))
    def freeze_or_thaw(self, which: int) -> None:
        if which < len(self.params):
            self.params[which].requires_grad_(not self.params[which].requires_grad)

    @rule(lr=RATES, which=st.integers(0, 2), as_tensor=st.booleans())
    def change_rate(self, lr: float, which: int, as_tensor: bool) -> None:
        groups = self.optimizer.param_groups
        group = groups[which % len(groups)]
        group["lr"] = torch.tensor(lr, dtype=torch.float64) if as_tensor else lr
        ids = {id(p) for p in group["params"]}
        for p, reference in zip(self.params, self.expected, strict=True):
            if id(p) in ids:
                reference.lr = lr

    @rule()
    def copy_both(self) -> None:
        self.params, self.optimizer = copy.deepcopy((self.params, self.optimizer))

    @rule()
    def save(self) -> None:
        self.saved = copy.deepcopy((self.optimizer.state_dict(), self.expected))

    @precondition(lambda self: self.saved and len(self.saved[1]) == len(self.params))
    @rule(anew=st.booleans())
    def load(self, anew: bool) -> None:
        """Momenta and rates go back; weights are the model's and stay."""
        assert self.saved is not None
        state, expected = copy.deepcopy(self.saved)
        if anew:
            groups = [{"params": g["params"]} for g in self.optimizer.param_groups]
            self.optimizer = self.make(groups)  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state)
        for now, then in zip(self.expected, expected, strict=True):
            then.w = now.w
        self.expected = expected

    @precondition(lambda self: self.saved and len(self.saved[1]) < len(self.params))
    @rule()
    def refuse(self) -> None:
        """A checkpoint of fewer groups changes nothing."""
        assert self.saved is not None
        try:
            self.optimizer.load_state_dict(self.saved[0])
        except ValueError:
            return
        raise AssertionError("a checkpoint of other groups was taken")

    @invariant()
    def weights_are_the_references(self) -> None:
        for p, reference in zip(self.params, self.expected, strict=True):
            expected = reference.w.reshape(p.shape)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-6)


class MuonHistory(History):
    def make(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return Muon(params, lr=0.05, weight_decay=0.3, ns_coefficients=TABLE)

    def reference(self, w: Tensor, lr: float) -> Any:
        if w.ndim == 1:
            return ReferenceAdamW(w, lr=lr, decay=0.3)
        polar = partial(polar_by_polynomials, coefficients=TABLE)
        options = {"weight_decay": 0.3, "momentum": 0.95, "nesterov": True, "match_rms": False}
        return ReferenceMuon(w, polar, lr=lr, **options)


class SpecGDHistory(History):
    def make(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return SpecGD(params, lr=0.05, momentum=0.8, nesterov=True, l2=0.1, weight_decay=0.2)

    def reference(self, w: Tensor, lr: float) -> Any:
        w = w if w.ndim > 1 else w.reshape(-1, 1)
        options = {"momentum": 0.8, "nesterov": True, "l2": 0.1, "decay": 0.2}
        return ReferenceOfColumns(w, polar_exact, lr=lr, **options)


SETTINGS = settings(max_examples=40, stateful_step_count=25, deadline=None, derandomize=True)
TestMuonHistory = MuonHistory.TestCase
TestMuonHistory.settings = SETTINGS
TestSpecGDHistory = SpecGDHistory.TestCase
TestSpecGDHistory.settings = SETTINGS
