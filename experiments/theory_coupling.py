"""Which observed entries learn together: the coupling matrix by depth.

Ten by ten, Gaussian starts; observed are the diagonal, or five 2 x 2 blocks on it. At depth 2
entries of different blocks never interact; from depth 3 on they do.

    python experiments/theory_coupling.py   # seconds

Source: Shin and Yun, arXiv 2603.04703, proposition 3.2.
"""

from __future__ import annotations

from bed import BLUE, RED
from theory_bed import is_quick, plt, save
from torch import Tensor

from torch_specgd import factorization as fz

DEPTHS = (2, 3, 4, 5, 6, 10)
SHOWN = (2, 3, 10)
OBSERVED = {"diagonal": (10, 1), "5 blocks of 2 x 2": (5, 2)}


def measure(
    depth: int, observed: str, seeds: range = range(20)
) -> tuple[dict[str, object], Tensor]:
    """Independent groups and cosines across blocks; the first seed's |cosines|, block by block."""
    blocks, side = OBSERVED[observed]
    mask = fz.diagonal_mask(blocks, side)
    block = mask.nonzero()[:, 0] // side
    factors = fz.gaussian_init([10] * (depth + 1), std=0.1, seeds=seeds)
    coupling = fz.coupling_matrix(factors, mask)
    across = fz.cross_coupling(coupling, block)
    groups = fz.coupled_components(coupling).amax(1) + 1
    order = block.argsort(stable=True)
    scale = coupling[0].diagonal().sqrt()
    cosine = (coupling[0] / scale[:, None] / scale)[order][:, order].abs()
    row = {
        "observed": observed, "depth": depth, "seeds": len(seeds),
        "components_min": int(groups.min()), "components_max": int(groups.max()),
    }  # fmt: skip
    for name, values in (("rms", across.rms), ("max", across.max)):
        row |= {f"{name}_cosine": float(values.mean()), f"{name}_cosine_low": float(values.min()),
                f"{name}_cosine_high": float(values.max())}  # fmt: skip
    return row, cosine


def main() -> None:
    if is_quick(__doc__):
        for observed, (blocks, _) in OBSERVED.items():
            rows = [measure(depth, observed, range(2))[0] for depth in (2, 3)]
            assert rows[0]["components_min"] == blocks, rows
            assert rows[1]["components_max"] == 1, rows
        return
    found = {(d, o): measure(d, o) for o in OBSERVED for d in DEPTHS}
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.9))
    figure.get_layout_engine().set(w_pad=0.12)
    for ax, depth in zip(axes, SHOWN, strict=False):
        row, cosine = found[depth, "5 blocks of 2 x 2"]
        image = ax.imshow(cosine.clamp(min=1e-4), cmap="magma", norm="log", vmin=1e-3, vmax=1)
        n = row["components_max"]
        ax.set_title(f"depth {depth}: {n} independent group{'s' if n != 1 else ''}")
        ax.set_xticks([4 * b + 1.5 for b in range(5)], [f"block {b + 1}" for b in range(5)],
                      fontsize=8)  # fmt: skip
        ax.set_yticks([])
    axes[0].set_ylabel("observed entries, by block", labelpad=8)
    figure.colorbar(image, ax=axes[:3], label="|cosine| of two entries' gradients", shrink=0.8)
    for observed, color in zip(OBSERVED, (BLUE, RED), strict=True):
        for key, line, name in (
            ("rms_cosine", "o-", "root mean square"),
            ("max_cosine", "s--", "maximum"),
        ):
            values, low, high = (
                [found[depth, observed][0][f"{key}{end}"] for depth in DEPTHS]
                for end in ("", "_low", "_high")
            )
            axes[3].plot(
                DEPTHS, values, line, color=color, markersize=4, label=f"{observed}, {name}"
            )
            axes[3].fill_between(DEPTHS, low, high, color=color, alpha=0.2, linewidth=0)
    axes[3].set(xlabel="depth", ylabel="|cosine| across blocks", xticks=DEPTHS, ylim=(-0.02, 1))
    axes[3].set_title("mean and range of 20 seeds")
    axes[3].legend()
    save("theory_coupling", figure, [row for row, _ in found.values()])


if __name__ == "__main__":
    main()
