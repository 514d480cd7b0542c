"""One polar factor for an adapter's product instead of one for each of its factors.

The product W = B A sees its gradient G only through G A^T and B^T G. With thin decompositions
A^T = Q_A R_A and B = Q_B R_B these are (G Q_A) R_A and R_B^T (Q_B^T G). The step

    B <- B - eta polar(G Q_A) R_A^-T          A <- A - eta R_B^-1 polar(Q_B^T G)

moves the product by eta polar(G Q_A) Q_A^T and eta Q_B polar(Q_B^T G), to first order: a step of
spectral norm eta each, the same for every pair of factors with that product. Momentum is kept in
the bases Q_A and Q_B and turned into the new ones.

Source: the bases and the turned momentum are those of LoRA-RITE (Yen et al., arXiv 2410.20625),
with a polar factor in the place of its second moments.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from torch_specgd import LoraPair, orthogonalize


class Coupled(torch.optim.Optimizer):
    """Steps of the product of each adapter, one step size eta for both sides.

    Args:
        pairs: Adapters.
        lr: eta, in units of the product's spectral norm.
        momentum: Of the gradients, with Nesterov's look-ahead.
        cutoff: Directions of a factor below this share of its largest singular value are left
            alone in a step of the other factor. A factor of zeros has no directions.
    """

    def __init__(
        self, pairs: Iterable[LoraPair], lr: float, momentum: float = 0.95, cutoff: float = 0.05
    ) -> None:
        self.pairs = list(pairs)
        factors = [f for pair in self.pairs for f in (pair.lora_b, pair.lora_a)]
        super().__init__(factors, {"lr": lr, "momentum": momentum, "cutoff": cutoff})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move all adapters once."""
        group = self.param_groups[0]
        for pair in self.pairs:
            b, a = pair.lora_b, pair.lora_a
            assert b.grad is not None
            assert a.grad is not None
            steps = self.side(b, b.grad, a.mT, group), self.side(a, a.grad.mT, b, group)
            b.sub_(steps[0], alpha=group["lr"] / pair.scale)
            a.sub_(steps[1].mT, alpha=group["lr"] / pair.scale)

    def side(self, factor: Tensor, gradient: Tensor, other: Tensor, group: dict) -> Tensor:
        """The step of one factor, (m, r), whose partner is (n, r)."""
        basis, sigma, turn = torch.linalg.svd(other, full_matrices=False)
        keep = sigma > group["cutoff"] * sigma[0].clamp_min(1e-12)
        inverse = torch.where(keep, 1 / sigma.clamp_min(1e-12), 0.0)
        # other = basis diag(sigma) turn, so gradient = (G basis) diag(sigma) turn.
        seen = (gradient @ turn.mT) * inverse
        state = self.state[factor]
        if not state:
            state["momentum"], state["basis"] = torch.zeros_like(seen), basis
        momentum = state["momentum"] @ (state["basis"].mT @ basis)
        momentum.lerp_(seen, 1 - group["momentum"])
        state["momentum"], state["basis"] = momentum, basis
        ahead = torch.lerp(seen, momentum, group["momentum"]) * keep
        return orthogonalize(ahead, method="svd") * inverse @ turn
