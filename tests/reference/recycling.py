"""Which units are recycled, from the published formulas: float64, a loop over units."""

import torch
from torch import Tensor


def dormant(activations: Tensor) -> list[float]:
    """Sokar et al. 2023, equation 1: mean |activation| over inputs, over the layer's mean.

    Args:
        activations: (inputs, units), every position of a map as an input.
    """
    sizes = [float(activations[:, i].double().abs().mean()) for i in range(activations.shape[1])]
    return [s / (sum(sizes) / len(sizes)) for s in sizes]


def gradient(gradients: Tensor) -> list[float]:
    """Liu et al. 2025 (GraMa): the same of the loss's gradient with respect to the activation."""
    return dormant(gradients)


def utility(activations: Tensor, outgoing: Tensor) -> list[float]:
    """Dohare et al. 2024: mean |activation| times the sum of |outgoing weights|.

    Args:
        activations: (inputs, units).
        outgoing: (outputs, units): what reads the units.
    """
    return [
        float(activations[:, i].double().abs().mean() * outgoing[:, i].double().abs().sum())
        for i in range(activations.shape[1])
    ]


def lowest(scores: list[float], ages: list[float], share: float, maturity: int) -> set[int]:
    """Return the units that continual backpropagation replaces: of the mature ones, the worst."""
    mature = [i for i in range(len(scores)) if ages[i] >= maturity]
    return set(sorted(mature, key=lambda i: scores[i])[: int(share * len(mature))])


def reborn(
    weights: dict[str, Tensor], fresh: dict[str, Tensor], units: set[int]
) -> dict[str, Tensor]:
    """Return a two-layer net after recycling: rows from ``fresh``, columns of zeros.

    Args:
        weights: in_weight (units, inputs), in_bias (units,), out_weight (outputs, units).
        fresh: in_weight and in_bias.
        units: Which are recycled.
    """
    new = {name: w.clone() for name, w in weights.items()}
    for i in units:
        new["in_weight"][i] = fresh["in_weight"][i]
        new["in_bias"][i] = fresh["in_bias"][i]
        new["out_weight"][:, i] = torch.zeros(len(new["out_weight"]))
    return new
