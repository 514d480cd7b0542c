"""Which observed entries learn together: the coupling matrix by depth.

Ten by ten, five 2 x 2 diagonal blocks observed, Gaussian starts. At depth 2 entries of different
blocks never interact; from depth 3 on they do.

    python experiments/theory_coupling.py   # seconds

Source: Shin and Yun, arXiv 2603.04703, proposition 3.2.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from theory_bed import save

from torch_specgd import factorization as fz

DEPTHS = (2, 3, 4, 5, 6)


def main() -> None:
    torch.set_num_threads(1)
    mask = fz.diagonal_mask(5, 2)
    block = mask.nonzero()[:, 0] // 2
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.9), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    rows = []
    for depth in DEPTHS:
        factors = fz.gaussian_init([10] * (depth + 1), std=0.1, seeds=range(20))
        coupling = fz.coupling_matrix(factors, mask)
        across = fz.cross_coupling(coupling, block)
        components = fz.coupled_components(coupling).amax(1) + 1
        rows.append(
            {"depth": depth, "components_min": int(components.min()),
             "components_max": int(components.max()), "rms_cosine": float(across.rms.mean()),
             "max_cosine": float(across.max.mean())}
        )  # fmt: skip
        if depth <= 4:
            order = block.argsort(stable=True)
            scale = coupling[0].diagonal().sqrt()
            cosine = (coupling[0] / scale[:, None] / scale)[order][:, order].abs()
            ax = axes[depth - 2]
            image = ax.imshow(cosine.clamp(min=1e-4), cmap="magma", norm="log", vmin=1e-3, vmax=1)
            n = int(components.max())
            ax.set_title(f"depth {depth}: {n} independent group{'s' if n > 1 else ''}")
            ax.set_xticks([4 * b + 1.5 for b in range(5)], [f"block {b + 1}" for b in range(5)],
                          fontsize=8)  # fmt: skip
            ax.set_yticks([])
    axes[0].set_ylabel("observed entries, by block", labelpad=8)
    figure.colorbar(image, ax=axes[:3], label="|cosine| of two entries' gradients", shrink=0.8)
    axes[3].plot(DEPTHS, [r["rms_cosine"] for r in rows], "o-", label="root mean square")
    axes[3].plot(DEPTHS, [r["max_cosine"] for r in rows], "s--", label="maximum")
    axes[3].set(xlabel="depth", ylabel="|cosine| across blocks", xticks=DEPTHS)
    axes[3].set_title("coupling across blocks, 20 seeds")
    axes[3].legend(fontsize=8)
    save("theory_coupling", figure, rows)


if __name__ == "__main__":
    main()
