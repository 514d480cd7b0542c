"""What may happen to an orthogonalized update on its way into a weight; each rule by itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..distributed.layout import placed_like


def neuron_normalize(o: Tensor, v: Tensor, beta: float, dims: Sequence[int]) -> Tensor:
    """NorMuon: divides every output neuron's update by its running root mean square.

        v <- beta v + (1 - beta) mean(O * O)   over a neuron's inputs
        O' = O / sqrt(v),   rescaled to O's Frobenius norm

    so that no neuron learns faster than the others, and the update's size stays Muon's.

    Args:
        o: Orthogonalized update.
        v: Running mean square of each neuron, ``o``'s shape with ``dims`` kept as 1; in place.
        beta: Weight of the old mean square, in [0, 1).
        dims: Dimensions of a neuron's inputs.

    Returns:
        A tensor of ``o``'s shape and dtype. Neurons that never had an update stay zero.

    Source:
        NorMuon, arXiv 2510.05491, without its Adam-matching constant: ``adjust_lr_fn`` sets that.
    """
    wide = o.to(v.dtype)
    # Of uneven shards, a sum and not a mean: torch 2.9 averages the ranks' means alike.
    mean = wide.square().sum(dim=tuple(dims), keepdim=True) / (wide.numel() // v.numel())
    # torch 2.14 refuses an operation in place on DTensors that lie differently.
    v.lerp_(placed_like(mean, v), 1 - beta)
    tiny = torch.finfo(v.dtype).tiny
    normed = wide / v.clamp(min=tiny).sqrt()
    size = torch.linalg.vector_norm(normed).clamp(min=tiny)
    return (normed * (torch.linalg.vector_norm(wide) / size)).to(o.dtype)


def cautious_decay_(p: Tensor, o: Tensor, rate: float | Tensor) -> None:
    """Weight decay only where the update shrinks the weight too: p <- p - rate p [o p > 0].

    Source:
        Cautious weight decay, arXiv 2510.12402.
    """
    p.sub_(p * (o * p > 0) * rate)


def stochastic_round(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rounds float32 to bfloat16, up or down with probabilities that make the mean exact.

    A bfloat16 momentum buffer loses every contribution below 2^-9 of its value to ordinary
    rounding; this keeps them in the mean.

    Args:
        x: float32; infinities and NaNs stay what they are.
        generator: Source of the 16 random bits per element, on ``x``'s device.

    Returns:
        bfloat16 of the same shape.

    Source:
        Gupta et al., arXiv 1502.02551.
    """
    noise = torch.randint(
        0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator
    )
    bits = (x.view(torch.int32) + noise) & -(1 << 16)
    return torch.where(x.isfinite(), bits.view(torch.float32), x).to(torch.bfloat16)
