"""Signs of lost plasticity, recorded from forward passes while a model trains."""

from __future__ import annotations

import csv
import io
import math
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specgd_common.files import replacing, write_text
from specgd_common.optional import needed
from specgd_common.tensors import full, norm64

from ..methods.hidden_units import ACTIVATIONS
from ..targets.find import Patterns, find_targets, matches
from ..targets.parameters import unwrap
from .activations import ActivationWatch
from .plasticity import effective_rank, feature_rows, share_below, stable_rank, unit_scores


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
        layers: Shell patterns or predicate of modules; None takes every activation: modules by
            their class, and functional calls (``layer1.relu``).
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
        nothing = torch.empty(0)

        def wanted(name: str) -> bool:
            return matches(layers, [name], nothing)

        def keep(name: str, x: Tensor) -> None:
            # Reduced at once: a transformer's activations are larger than its weights.
            self._kept[name] = unit_scores(x), feature_rows(x, samples)

        self._watch = ActivationWatch(self.model, None if layers is None else wanted, keep)
        modules = [name for name, _ in self.model.named_modules()]
        calls = (f"{name}.{f}" for name in modules if name for f in ACTIVATIONS)
        if layers is not None and not any(wanted(name) for name in (*modules, *calls)):
            raise ValueError(f"layers {layers!r} matches no module")

    def attach(self) -> Diagnostics:
        """Start to watch forward passes."""
        if not self._watch:
            self._watch.start()
        return self

    def detach(self) -> None:
        """Remove every hook and forget the activations."""
        self._watch.stop()
        self._kept = {}

    def __enter__(self) -> Diagnostics:
        return self.attach()

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def record(self, epoch: float) -> list[Reading]:
        """Measure every layer now: activations of the last forward pass, weights, gradients.

        Args:
            epoch: Any number that orders the readings.

        Returns:
            This epoch's readings; all are in ``readings``.

        Raises:
            RuntimeError: If hooks are attached but no forward pass has been seen.
        """
        if self._watch and not self._watch.passes:
            raise RuntimeError(
                "no forward pass since attach(); record() comes after one. A compiled model that "
                "ran before attach() does not see the hooks: run one batch of it under "
                'torch.compiler.set_stance("force_eager")'
            )
        if self._watch and not self._kept:
            warnings.warn(
                f"no activation was seen in {self._watch.passes} forward pass(es) of a "
                f"{type(self.model).__name__}: only weights are read; name modules in layers=",
                UserWarning,
                stacklevel=2,
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
            norm = norm64(w)
            grad = t.parameter.grad
            ratio = None if grad is None or norm == 0 else norm64(full(grad)) / norm
            now.append(
                Reading(epoch, t.name, "weight", norm=norm, stable_rank=stable_rank(w),
                        gradient_ratio=ratio)
            )  # fmt: skip
        self.readings += now
        return now

    def to_csv(self, path: str | Path) -> None:
        """Write every reading as one row."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [x.name for x in fields(Reading)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(r) for r in self.readings)
        write_text(path, text.getvalue())

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw each quantity over training, one line per layer; return the matplotlib figure."""
        columns = ("dormant", "effective_rank", "norm", "stable_rank", "gradient_ratio")
        figure = needed("matplotlib.figure", "plot").Figure(figsize=(14, 3.2), layout="constrained")
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
            with replacing(path) as file:
                figure.savefig(file, dpi=120, format=Path(path).suffix[1:] or "png")
        return figure
