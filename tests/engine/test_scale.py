"""The scale of a matrix must not matter: not its size, and not its last bits."""

import torch

from reference.polar import with_spectrum
from torch_specgd.triton_kernels import orthogonalize


def test_no_scale_between_two_powers_of_two_diverges() -> None:
    """Scalars that are rounded to 16 bits differ by 2^-9 from scale to scale: a training run
    meets all of them, and one whose square is rounded differently from itself is enough to send
    the largest singular value beyond what a degree-9 step forgives."""
    spectrum = torch.logspace(0, -6, 65).tolist()
    for rank in (1, 2, 16, 64, 65):
        kept = [s if i < rank else 0.0 for i, s in enumerate(spectrum)]
        x = with_spectrum(torch.tensor(kept), 65, 130).float()
        scaled = torch.stack([x * c for c in torch.linspace(0.03, 0.06, 64)])
        y = orthogonalize(scaled, dtype=torch.bfloat16)
        assert float(torch.linalg.svdvals(y.double()).amax()) < 1.1, rank
