"""Signs of lost plasticity, recorded from forward passes while a model trains."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .entries import unwrap
from .ranks import full
from .targets import Patterns, find_targets, matches

ACTIVATIONS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
    nn.Hardswish,
    nn.Mish,
    nn.ReLU6,
)


@dataclass
class Reading:
    """One layer at one time.

    Attributes:
        epoch: As given to ``Diagnostics.record``.
        layer: Activation module or parameter.
        kind: ``"activation"`` or ``"weight"``.
        dormant: Share of units whose mean |activation| is at most tau of the layer's mean.
        effective_rank: exp(entropy of the normalized singular values) of the features.
        norm: Euclidean norm of the weight.
        stable_rank: |W|_F^2 / |W|_2^2, in [1, min(m, n)].
        gradient_ratio: |gradient| / |weight|, if the weight had a gradient.
    """

    epoch: float
    layer: str
    kind: str
    dormant: float | None = None
    effective_rank: float | None = None
    norm: float | None = None
    stable_rank: float | None = None
    gradient_ratio: float | None = None


class Diagnostics:
    """Dormant units, effective rank, norms and gradients of a model, once per epoch.

    Hooks are in place only inside the ``with`` block (or between ``attach`` and ``detach``); of the
    last batch they keep one number per unit and at most ``samples`` rows of features per layer. A
    compiled model must not have run before they are attached, or run the recorded batch uncompiled.

    Args:
        model: Any module.
        layers: Shell patterns or predicate of activation modules; None takes every ReLU, GELU, ...
        tau: Threshold of dormancy relative to the layer's mean, >= 0 (Sokar et al. use 0.025 for
            RL, 0.1 is common).
        samples: Rows of features kept per layer, spread over the batch's tokens.

    Raises:
        ValueError: If no module matches, or tau or samples are out of range.

    Source: Sokar et al. 2023 (arXiv 2302.12902) for dormant units; Roy & Vetterli 2007 for
    effective rank.

    Example:
        >>> import torch
        >>> from warmstart import Diagnostics
        >>> nn = torch.nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with Diagnostics(model) as probe:
        ...     for epoch in range(2):
        ...         model(torch.randn(16, 4)).square().mean().backward()
        ...         _ = probe.record(epoch)
        >>> sorted({r.layer for r in probe.readings})
        ['0.weight', '1', '2.weight']
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Patterns = None,
        tau: float = 0.1,
        samples: int = 512,
    ) -> None:
        if not 0.0 <= tau < math.inf:
            raise ValueError(f"tau must be finite and >= 0, got {tau}")
        if samples < 2:
            raise ValueError(f"samples must be at least 2, got {samples}")
        self.model, self.tau, self.samples = unwrap(model), tau, samples
        self.readings: list[Reading] = []
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}
        self._handles: list[Any] = []
        none = torch.empty(0)
        self._modules = {
            name: m
            for name, m in self.model.named_modules()
            if (isinstance(m, ACTIVATIONS) if layers is None else matches(layers, name, none))
        }
        if not self._modules and layers is not None:
            raise ValueError(f"layers {layers!r} matches no module")

    def attach(self) -> Diagnostics:
        """Start to watch forward passes."""
        if not self._handles:
            self._handles = [
                m.register_forward_hook(self._keep(name)) for name, m in self._modules.items()
            ]
        return self

    def detach(self) -> None:
        """Remove every hook and forget the activations."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._kept = [], {}

    def __enter__(self) -> Diagnostics:
        return self.attach()

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            x = output[0] if isinstance(output, tuple) else output
            if isinstance(x, Tensor) and x.ndim >= 2:
                # Reduced at once: a transformer's activations are larger than its weights.
                x = x.detach()
                self._kept[name] = unit_scores(x), feature_rows(x, self.samples)

        return hook

    def record(self, epoch: float) -> list[Reading]:
        """Measure every layer now: activations of the last forward pass, weights, gradients.

        Args:
            epoch: Any number that orders the readings.

        Returns:
            This epoch's readings; all are in ``readings``.

        Raises:
            RuntimeError: If hooks are attached but no forward pass has been seen.
        """
        if self._handles and self._modules and not self._kept:
            raise RuntimeError(
                "no forward pass since attach(); record() comes after one. A compiled model that "
                "ran before attach() does not see the hooks: run one batch of it under "
                'torch.compiler.set_stance("force_eager")'
            )
        now = [
            Reading(epoch, name, "activation", dormant=share_below(scores, self.tau),
                    effective_rank=effective_rank(rows))
            for name, (scores, rows) in self._kept.items()
        ]  # fmt: skip
        targets, _ = find_targets(self.model, bias="skip")
        for t in targets:
            if t.parameter.ndim < 2:
                continue
            w = full(t.parameter.detach()).float()
            norm = float(w.norm())
            grad = t.parameter.grad
            ratio = None if grad is None or norm == 0 else float(full(grad).float().norm()) / norm
            now.append(
                Reading(epoch, t.name, "weight", norm=norm, stable_rank=stable_rank(w),
                        gradient_ratio=ratio)
            )  # fmt: skip
        self.readings += now
        return now

    def to_csv(self, path: str | Path) -> None:
        """Every reading as one row."""
        with Path(path).open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, [x.name for x in fields(Reading)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(r) for r in self.readings)

    def plot(self, path: str | Path | None = None) -> Any:
        """Each quantity over training, one line per layer; returns the matplotlib figure."""
        from matplotlib.figure import Figure

        columns = ("dormant", "effective_rank", "norm", "stable_rank", "gradient_ratio")
        figure = Figure(figsize=(14, 3.2), layout="constrained")
        axes = figure.subplots(1, len(columns))
        for axis, column in zip(axes, columns, strict=True):
            for layer in dict.fromkeys(r.layer for r in self.readings):
                points = [
                    (r.epoch, getattr(r, column))
                    for r in self.readings
                    if r.layer == layer and getattr(r, column) is not None
                ]
                if points:
                    axis.plot(*zip(*points, strict=True), marker=".", label=layer)
            axis.set(title=column.replace("_", " "), xlabel="epoch")
            axis.grid(alpha=0.3)
        handles = {
            label: h for a in axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def features(x: Tensor) -> Tensor:
    """Activations as (examples, units): channels of a convolution averaged over positions."""
    x = x.float()
    if x.ndim == 4 or x.ndim == 5:
        return x.flatten(2).mean(2)
    return x.flatten(0, -2) if x.ndim == 3 else x


def feature_rows(x: Tensor, samples: int) -> Tensor:
    """At most ``samples`` rows of ``features(x)``, a copy."""
    if x.ndim >= 4:
        return features(x[:samples])
    rows = x.flatten(0, -2)
    return rows[:: -(-len(rows) // samples)].to(torch.float32, copy=True)


def unit_scores(x: Tensor) -> Tensor:
    """Mean |activation| of every unit: channels of a convolution, entries of the last axis else."""
    x = x.abs()
    over = (0, *range(2, x.ndim)) if x.ndim >= 4 else tuple(range(x.ndim - 1))
    return x.mean(over, dtype=torch.float32)


def share_below(scores: Tensor, tau: float) -> float:
    """Share of units whose score is at most ``tau`` times the mean score."""
    return float((scores <= tau * scores.mean()).float().mean())


def dormant_share(x: Tensor, tau: float) -> float:
    """Share of units with mean |activation| at most ``tau`` times the layer's mean.

    Units are the channels (dimension 1) of convolutional activations, the last dimension otherwise.

    Example:
        >>> import torch
        >>> from warmstart.diagnostics import dormant_share
        >>> dormant_share(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), 0.1)
        0.5
    """
    return share_below(unit_scores(x), tau)


def effective_rank(x: Tensor) -> float:
    """exp(entropy of the singular values of ``x`` divided by their sum); 0 for a zero matrix.

    Example:
        >>> import torch
        >>> from warmstart.diagnostics import effective_rank
        >>> round(effective_rank(torch.eye(4)), 4)
        4.0
    """
    s = torch.linalg.svdvals(x.float())
    total = s.sum()
    if total == 0:
        return 0.0
    p = s[s > 0] / total
    return float(torch.exp(-(p * p.log()).sum()))


def stable_rank(w: Tensor) -> float:
    """|W|_F^2 / |W|_2^2 of the weight as (out, rest); 0 for a zero matrix, NaN for a broken one.

    Above 256 rows and columns |W|_2 comes from a block power iteration, from below: within a
    hundredth at random initialization, where the spectrum is flattest (2048 rows: 0.6 %), in a
    tenth of the time that all singular values take there.
    """
    w = w.flatten(1).float()
    largest = w.abs().amax()
    if largest == 0 or not largest.isfinite():
        return 0.0 if largest == 0 else float("nan")
    w = w / largest  # squares of 1e30 leave float32
    top = _largest_singular_value(w) if min(w.shape) > _EXACT else torch.linalg.svdvals(w)[0]
    return float(w.norm() / top) ** 2


_EXACT, _BLOCK, _ITERATIONS = 256, 8, 40


def _largest_singular_value(w: Tensor) -> Tensor:
    start = torch.Generator().manual_seed(0)  # the global random state is the user's
    x = torch.randn(w.shape[1], _BLOCK, generator=start).to(w.device)
    for _ in range(_ITERATIONS):
        x = torch.linalg.qr(w.T @ (w @ x)).Q
    return torch.linalg.matrix_norm(w @ x, 2)
