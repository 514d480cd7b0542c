"""How fast the adapters of a model can grow under a spectral optimizer."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..groups.lora import LoraPair, as_pairs
from ..step.rules import shape_scale


@dataclass(frozen=True)
class LoraRate:
    """How fast one adapter's product can grow under a spectral optimizer.

    Args:
        name: The adapter.
        shape: (m, n) of the product.
        rank: r.
        scale: c.
        lr_b: Step of lora_b in spectral norm, shape factor included.
        lr_a: Step of lora_a in spectral norm.
        stuck: Whether both factors are zero: then both gradients are, for ever.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    scale: float
    lr_b: float
    lr_a: float
    stuck: bool

    @property
    def effective_rate(self) -> float:
        """sqrt(c lr_b lr_a): growth per step of sqrt(sigma) of c lora_b @ lora_a."""
        return (self.scale * self.lr_b * self.lr_a) ** 0.5

    def predicted_steps(self, sigma: float) -> float:
        """Return a mode's steps from near zero to sigma: sqrt(sigma) / effective_rate."""
        return sigma**0.5 / self.effective_rate if self.effective_rate else float("inf")


class LoraReport(list[LoraRate]):
    """The rates of all adapters; prints as a table."""

    def __str__(self) -> str:
        width = max(len(x.name) for x in self) if self else 0
        columns = ("m x n", "r", "c", "lr_b", "lr_a", "rate")
        head = f"{'adapter':{width}} {columns[0]:>13} {columns[1]:>4} {columns[2]:>6}" + "".join(
            f" {c:>9}" for c in columns[3:]
        )
        rows = [
            f"{x.name:{width}} {f'{x.shape[0]} x {x.shape[1]}':>13} {x.rank:4d} {x.scale:6.3g} "
            f"{x.lr_b:9.3g} {x.lr_a:9.3g} {x.effective_rate:9.3g}"
            + ("  both factors are zero: cannot train" if x.stuck else "")
            for x in self
        ]
        return "\n".join([head, *rows])


def lora_report(model: nn.Module | Iterable[LoraPair], optimizer: Optimizer) -> LoraReport:
    """Report each adapter's effective rate sqrt(c lr_a lr_b) under an optimizer.

    Args:
        model: A module or pairs.
        optimizer: SpecGD, Muon or torch.optim.Muon that holds the factors; their current
            learning rates count. A factor that it does not hold has rate 0.

    Returns:
        One :class:`LoraRate` per adapter; ``print`` shows a table.

    Raises:
        ValueError: If there are no pairs, or the optimizer is not spectral.

    Example:
        >>> import torch
        >>> from torch_specgd import SpecGD
        >>> pair = LoraPair("q", torch.zeros(6, 2), torch.randn(2, 4), scale=4.0)
        >>> optimizer = SpecGD([pair.lora_a, pair.lora_b], lr=0.01)
        >>> rate = lora_report([pair], optimizer)[0]
        >>> round(rate.effective_rate, 6), round(rate.predicted_steps(1.0), 6)
        (0.02, 50.0)
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return LoraReport(
        LoraRate(
            pair.name,
            pair.shape,
            pair.rank,
            pair.scale,
            _spectral_step(pair.lora_b, groups),
            _spectral_step(pair.lora_a, groups),
            bool(~pair.lora_b.any() & ~pair.lora_a.any()),
        )
        for pair in as_pairs(model)
    )


def _spectral_step(factor: Tensor, groups: dict[int, dict[str, Any]]) -> float:
    group = groups.get(id(factor))
    if group is None:
        return 0.0
    if "adjust_lr_fn" not in group:
        raise ValueError(
            "the optimizer is not spectral: its groups have no adjust_lr_fn; an effective rate "
            "is known for SpecGD, Muon and torch.optim.Muon"
        )
    m, n = factor.flatten(1).shape
    return float(group["lr"]) * shape_scale(group["adjust_lr_fn"], m, n)
