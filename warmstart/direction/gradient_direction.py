"""The gradient direction: an exponential moving average of negative gradients, batch by batch.

    G <- (1 - alpha) G + alpha (-grad L_b),   G = 0 at the start

``GradientDirection`` can be fed from any backward pass; ``measure_direction`` runs the pass itself
and leaves no trace on the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from specgd_common.tensors import is_dtensor, local

from ..targets.find import Patterns, Target, find_targets
from .norms import NormMap
from .ranks import lowest, mean_over_ranks, mesh_groups


def watched_parameters(targets: Sequence[Target]) -> dict[str, Tensor]:
    """Return every parameter whose gradient the targets need, by name."""
    watched: dict[str, Tensor] = {}
    for t in targets:
        watched[t.name] = t.parameter
        watched.update(t.tied)
        if t.direction_of is not None:
            watched[t.direction_of[0]] = t.direction_of[1]
    return watched


class EvenBatches(Mapping[str, Tensor]):
    """What even batches contributed: the whole average without the odd ones, one at a time."""

    def __init__(self, whole: Mapping[str, Tensor], odd: Mapping[str, Tensor]) -> None:
        self.whole, self.odd = whole, odd

    def __getitem__(self, name: str) -> Tensor:
        return self.whole[name] - self.odd[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole)

    def __len__(self) -> int:
        return len(self.whole)


@dataclass
class Direction:
    """Moving averages of negative gradients, measured just now or read from a file.

    Attributes:
        average: Parameter name -> its direction, shaped like it.
        odd: What every second batch contributed to it, if that was kept.
        num_batches: Batches behind it.
        norms: What the first forward pass has shown about normalization; empty without one.
    """

    average: Mapping[str, Tensor]
    odd: Mapping[str, Tensor] | None = None
    num_batches: int = 0
    norms: NormMap = field(default_factory=NormMap)

    @property
    def halves(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None:
        """What even and odd batches contributed, or None if it was not kept or one is empty."""
        if self.odd is None or self.num_batches < 2:
            return None
        return EvenBatches(self.average, self.odd), self.odd


def renamed(direction: Direction, names: Mapping[str, str]) -> Direction:
    """Return a direction whose parameters go by other names."""
    odd = direction.odd
    return Direction(
        {new: direction.average[old] for old, new in names.items()},
        None if odd is None else {new: odd[old] for old, new in names.items()},
        direction.num_batches,
        direction.norms,
    )


class GradientDirection(Direction):
    """Moving average of the negative gradients of a model's selected parameters.

    Feed it from your own training loop, save it with a checkpoint, and hand it to ``dash_shrink``
    in place of data. One float32 buffer per selected parameter (float64 for float64 parameters).

    Args:
        model: The module whose parameters are watched.
        alpha: Weight of the newest batch (the paper's alpha), in (0, 1].
        include: As in ``dash_shrink``.
        exclude: As in ``dash_shrink``.
        bias: As in ``dash_shrink``.
        targets: Already selected targets, instead of the three above.
        reliability: Also keep the part that every second batch contributed (a second buffer per
            parameter), so that the report can say how well the two halves agree.

    Raises:
        ValueError: For alpha outside (0, 1].

    Example:
        >>> import torch
        >>> from warmstart import GradientDirection, dash_shrink
        >>> model = torch.nn.Linear(2, 3)
        >>> direction = GradientDirection(model, alpha=0.3)
        >>> for _ in range(4):
        ...     model(torch.randn(8, 2)).square().mean().backward()
        ...     direction.update()
        ...     model.zero_grad()
        >>> direction.num_batches
        4
        >>> report = dash_shrink(model, direction)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        alpha: float = 0.3,
        include: Patterns = None,
        exclude: Patterns = None,
        bias: str = "vector",
        targets: Sequence[Target] | None = None,
        reliability: bool = False,
    ) -> None:
        check_alpha(alpha)
        if targets is None:
            targets, _ = find_targets(model, include=include, exclude=exclude, bias=bias)
        self.alpha = float(alpha)
        self.parameters = watched_parameters(targets)
        # The moving average is a sum over batches: what the odd ones gave, beside the whole.
        super().__init__(self._zeros(), self._zeros() if reliability else None)

    def _zeros(self) -> dict[str, Tensor]:
        return {
            name: torch.zeros_like(
                p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False
            )
            for name, p in self.parameters.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        """Return the direction of one parameter, shaped like it."""
        return self.average[name]

    def __contains__(self, name: object) -> bool:
        return name in self.average

    def update(
        self, gradients: Mapping[str, Tensor | None] | None = None, *, scale: float = 1.0
    ) -> None:
        """Add one batch; nothing changes if a gradient is not finite.

        Args:
            gradients: By parameter name; None reads every watched parameter's ``.grad``. A missing
                gradient counts as zero (the parameter took no part in this batch).
            scale: What the loss was multiplied by (the gradient scaler's scale); divided out.

        Raises:
            ValueError: Naming the batch and the parameters, if a gradient is NaN or infinite.
        """
        if gradients is None:
            gradients = {n: p.grad for n, p in self.parameters.items()}
        self._check(gradients)
        with torch.no_grad():
            for name, average in self.average.items():
                average.mul_(1.0 - self.alpha)
                if self.odd is not None:
                    self.odd[name].mul_(1.0 - self.alpha)
                g = gradients.get(name)
                if g is not None:
                    g = g.detach()
                    if is_dtensor(g) and is_dtensor(average) and g.placements != average.placements:
                        g = g.redistribute(average.device_mesh, average.placements)
                    # In two steps: alpha / scale alone may leave float32's range.
                    g = g.to(average.dtype).mul(1.0 / scale)
                    average.sub_(g, alpha=self.alpha)
                    if self.odd is not None and self.num_batches % 2:
                        self.odd[name].sub_(g, alpha=self.alpha)
        self.num_batches += 1

    def _check(self, gradients: Mapping[str, Tensor | None]) -> None:
        given = {n: g for n, g in gradients.items() if g is not None and n in self.average}
        for name, g in given.items():
            if g.shape != self.average[name].shape:
                raise ValueError(
                    f"gradient of {name!r} is {tuple(g.shape)}, "
                    f"the parameter is {tuple(self.average[name].shape)}"
                )
        if not given:
            raise RuntimeError(
                f"batch {self.num_batches}: no watched parameter has a gradient; "
                "call update() after backward() and before zero_grad()"
            )
        # One flag per parameter, one transfer per batch: a GPU is not stalled per parameter.
        flags = [local(g).isfinite().all() for g in given.values()]
        finite = torch.stack([f.to(flags[0].device) for f in flags]).float()
        if any(is_dtensor(g) for g in given.values()):
            # Each rank sees its rows; all must refuse together or the next collective hangs.
            finite = lowest(finite, mesh_groups(given.values()))
        bad = [n for n, ok in zip(given, finite.bool().tolist(), strict=True) if not ok]
        if bad:
            shown = ", ".join(f"{n} {tuple(given[n].shape)}" for n in bad[:5])
            raise ValueError(
                f"batch {self.num_batches}: gradient is NaN or infinite in {len(bad)} of "
                f"{len(given)} parameters ({shown}); no weight was changed"
            )

    def average_over_ranks(self, groups: Sequence[Any]) -> None:
        """Replace the averages by their means over ranks: what averaged gradients would have given.

        Raises:
            ValueError: If the ranks saw different numbers of batches.
        """
        device = next(iter(self.average.values())).device
        n = torch.tensor([self.num_batches, -self.num_batches], dtype=torch.float64, device=device)
        fewest, most = lowest(n.float(), groups).tolist()
        if fewest != -most:
            raise ValueError(
                f"ranks saw between {fewest:.0f} and {-most:.0f} batches; a moving average needs "
                "equal numbers (use a DistributedSampler, or max_batches)"
            )
        for average in (*self.average.values(), *(self.odd or {}).values()):
            mean_over_ranks(average, groups)

    def state_dict(self) -> dict[str, Any]:
        """Return averages, alpha and the number of batches; resumes exactly."""
        state: dict[str, Any] = {
            "alpha": self.alpha,
            "num_batches": self.num_batches,
            "directions": {n: a.detach().clone() for n, a in self.average.items()},
        }
        if self.odd is not None:
            state["odd_batches"] = {n: a.detach().clone() for n, a in self.odd.items()}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``; nothing changes if it is refused.

        Raises:
            ValueError: If keys, names, shapes or values are not what ``state_dict()`` gives for
                these parameters, or the halves for ``reliability`` were not saved.
            TypeError: For values of another kind.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping, got {type(state_dict).__name__}")
        keys = {"alpha", "num_batches", "directions"}
        if self.odd is not None and "odd_batches" not in state_dict:
            raise ValueError("the saved direction was not built with reliability=True")
        if missing := sorted(keys - set(state_dict)):
            raise ValueError(f"state_dict lacks {missing}")
        if unknown := sorted(set(map(str, state_dict)) - keys - {"odd_batches"}):
            raise ValueError(f"state_dict has unknown keys {unknown[:5]}")
        alpha, batches = state_dict["alpha"], state_dict["num_batches"]
        check_alpha(alpha)
        if isinstance(batches, bool) or not isinstance(batches, int) or batches < 0:
            raise ValueError(f"num_batches must be an integer >= 0, got {batches!r}")
        pairs = [(state_dict["directions"], self.average)]
        if self.odd is not None:
            pairs.append((state_dict["odd_batches"], self.odd))
        for given, own in pairs:
            _check_directions(given, own)
        with torch.no_grad():
            for given, own in pairs:
                for name, value in given.items():
                    own[name].copy_(value)
        self.alpha, self.num_batches = float(alpha), batches


def _check_directions(given: Any, own: Mapping[str, Tensor]) -> None:
    """Refuse directions that are not finite tensors of the watched parameters' names and shapes."""
    if not isinstance(given, Mapping):
        raise TypeError(f"directions must be a mapping, got {type(given).__name__}")
    if set(given) != set(own):
        differing = sorted(map(str, set(given) ^ set(own)))[:5]
        raise ValueError(f"directions and watched parameters differ in {differing}")
    for name, value in given.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            what = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"direction of {name!r} must be a floating-point tensor, got {what}")
        if value.shape != own[name].shape:
            raise ValueError(
                f"direction of {name!r} is {tuple(value.shape)}, "
                f"the parameter is {tuple(own[name].shape)}"
            )
        if not bool(local(value).isfinite().all()):
            raise ValueError(f"direction of {name!r} is not finite")


def check_alpha(alpha: float) -> None:
    """Refuse weights of the newest batch outside (0, 1]."""
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise TypeError(f"alpha must be a number in (0, 1], got {type(alpha).__name__}")
    if not 0.0 < alpha <= 1.0:
        raise ValueError(f"alpha must be in (0, 1], got {alpha}")
