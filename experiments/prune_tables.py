"""The tables of docs/pruning_results.md that small result files fill; ``tables.py`` writes them."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean

import prune_wrong_labels
from bed import RESULTS, lines, ranged, read
from claims import paired


def noise_epochs() -> str:
    """Wrong labels among the kept, by scoring epochs."""
    share: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read(RESULTS / "prune_noise_epochs.csv"):
        place = (row["method"], row["prune_ratio"])
        share[place][int(row["epochs"])].append(100 * float(row["wrong_labels"]))
    rows = []
    for (method, ratio), of in share.items():
        if ratio == "0.9" or (ratio == "0.5" and method.startswith("DUAL")):
            rows.append([f"{method}, {ratio}", *(f"{mean(of[t]):.1f}" for t in sorted(of))])
    rows.sort(key=lambda row: [name for name, _ in share].index(row[0].rpartition(", ")[0]))
    return lines("| method, ratio | T = 5 | 10 | 20 | 40 |", rows)


def wrong_kept() -> str:
    """Wrong labels among the kept after ten scoring epochs, by rule and prune ratio."""
    share: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read(RESULTS / "prune_noise_epochs.csv"):
        if row["epochs"] == "10":
            share[row["method"]][row["prune_ratio"]].append(100 * float(row["wrong_labels"]))
    ratios = sorted(share["random"])
    rows = [[method, *(f"{mean(of[r]):.1f}" for r in ratios)] for method, of in share.items()]
    return lines(f"| method | {' | '.join(ratios)} |", rows)


def c_d() -> str:
    """Accuracy of the Beta rule by its c_D, with and without quotas; the best of a row is bold."""
    found = {(r["prune_ratio"], r["method"]): 100 * float(r["accuracy"])
             for r in read(RESULTS / "prune_c_d.csv")}  # fmt: skip
    names = {f"c={c}": c for c in ("1", "2", "4", "5.5", "8", "16")} | {"auto": "auto"}
    rows = []
    for ratio in ("0.9", "0.8"):
        for quotas, told in ((" per class", "per class"), ("", "without quotas")):
            values = [found[ratio, f"beta {name}{quotas}"] for name in names]
            cells = [f"**{v:.1f}**" if v == max(values) else f"{v:.1f}" for v in values]
            random = f"{found[ratio, f'random{quotas}']:.1f}"
            rows.append([f"{ratio}, {told}", *cells, random])
    return lines(f"| c_D | {' | '.join(names.values())} | random |", rows)


def many_steps(noise: str) -> str:
    """Accuracy after 4,000 steps on 20,000 images, by seed, and the default minus random."""
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in read(RESULTS / "prune_fashion_mnist_4000.csv"):
        if row["noise"] == noise:
            own = found[row["prune_ratio"]][row["method"]]
            own[row["seed"]] = 100 * float(row["accuracy"])
    names = sorted({m for of in found.values() for m in of}, key=lambda m: (m != "random", m))
    rows = []
    for ratio, of in sorted(found.items()):
        cells = [" ".join(f"{of[m][s]:.1f}" for s in sorted(of[m])) or "not run" for m in names]
        rows.append([ratio, *cells, paired(of["default"], of["random"]).text])
    head = [name.replace("DUAL + Beta", "DUAL + Beta, c_D = 4") for name in names]
    return lines(f"| ratio | {' | '.join(head)} | default minus random |", rows)


def likely_wrong() -> str:
    """Precision at the true number of wrong labels, beside cleanlab."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    count: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in read(prune_wrong_labels.CSV):
        place = row["data"], row["labels"]
        found[place][row["method"]].append(float(row["precision"]))
        count[place].append(int(row["wrong"]))
    names = list(next(iter(found.values())))
    rows = [
        [*place, f"{min(count[place])} to {max(count[place])}", *(ranged(of[m], 1) for m in names)]
        for place, of in found.items()
    ]
    return lines(f"| data | labels | wrong | {' | '.join(names)} |", rows)
