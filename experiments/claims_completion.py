"""Claims of arXiv 2603.04703 (depth, low rank and plasticity) against the theory result files."""

from __future__ import annotations

from collections.abc import Callable

from claims import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Claim,
    Outcome,
    by_seed,
    decided,
    middle,
    not_run,
    paired,
    rows,
    together,
)

OBSERVED = {"1": "diagonal", "2": "2 x 2 blocks"}


def coupled() -> Outcome:
    """Depth 2: as many groups as blocks; from depth 3 on one group, more strongly with depth."""
    found = rows("theory_coupling")
    two = [r for r in found if r["depth"] == "2"]
    deep = [r for r in found if r["depth"] != "2"]
    blocks = {"diagonal": 10, "5 blocks of 2 x 2": 5}
    holds = all(int(r["components_min"]) == blocks[r["observed"]] for r in two)
    holds &= all(int(r["components_max"]) == 1 for r in deep)
    rms = {r["depth"]: float(r["rms_cosine"]) for r in deep if r["observed"] != "diagonal"}
    holds &= sorted(rms.values()) == list(rms.values())
    text = "depth 2: " + ", ".join(f"{r['components_min']} groups ({r['observed']})" for r in two)
    cosines = ", ".join(f"{depth}: {value:.2f}" for depth, value in rms.items())
    return decided(holds, f"{text}; deeper: one group; rms cosine by depth {cosines}", 20)


def closed_form() -> Outcome:
    """The flow's stable rank against the closed form, all of the family."""
    found = rows("theory_depth", start="family")
    gap = max(float(r["difference"]) for r in found)
    depths = sorted({int(r["depth"]) for r in found})
    text = (
        f"{len(found)} settings, depths {depths[0]} to {depths[-1]}: largest difference {gap:.1e}"
    )
    return decided(gap < 1e-3, text, 1)


def family(deep: bool, diagonal: bool = False) -> Callable[[], Outcome]:
    """Stable rank at the smallest scale: one for deep nets, above it for depth 2 and m = inf."""

    def judge() -> Outcome:
        found = [r for r in rows("theory_depth", start="family", alpha="0.01")
                 if (int(r["depth"]) > 2) == deep and (r["m"] == "inf") == diagonal]  # fmt: skip
        found = found if diagonal else [r for r in found if r["m"] == "10"]
        ranks = [float(r["stable_rank"]) for r in found]
        text = f"{len(found)} settings: stable rank {min(ranks):.3f} to {max(ranks):.3f} of 4"
        goal = all(abs(r - 4) < 1e-3 for r in ranks) if diagonal else max(ranks) < 1.01
        return decided(goal if deep or diagonal else min(ranks) > 1.5, text, 1)

    return judge


def gaussian(deep: bool) -> Callable[[], Outcome]:
    """Median stable rank from Gaussian starts at the smallest scale."""

    def judge() -> Outcome:
        parts = {}
        for side, name in OBSERVED.items():
            found = {r["depth"]: float(r["stable_rank"])
                     for r in rows("theory_depth", start="gaussian", alpha="0.01", block=side)
                     if (int(r["depth"]) > 2) == deep}  # fmt: skip
            text = ", ".join(f"depth {d}: {v:.3f}" for d, v in found.items())
            values = found.values()
            parts[name] = decided(max(values) < 1.05 if deep else min(values) > 1.5, text, 15)
        return together(parts)

    return judge


def menon(start: str, deep: bool) -> Callable[[], Outcome]:
    """|1 - x y| at the smallest scale: on the hyperbola or not."""

    def judge() -> Outcome:
        found = [r for r in rows("theory_menon", start=start, alpha="0.01")
                 if (int(r["depth"]) > 2) == deep]  # fmt: skip
        text = ", ".join(f"depth {r['depth']}: {float(r['away']):.1e}" for r in found)
        away = [float(r["away"]) for r in found]
        holds = max(away) < 1e-3 if deep and start != "m = inf" else min(away) > 0.05
        return decided(holds, f"median distance of x y from 1: {text}", found[0]["seeds"])

    return judge


def gaps(protocol: str, depth: str, **where: str) -> dict[str, dict[str, str]]:
    """Rows by size."""
    found = rows("theory_plasticity", protocol=protocol, depth=depth, **where)
    return {r["size"]: r for r in sorted(found, key=lambda r: int(r["size"]))}


def loses(depth: str, m: str = "10.0", above: float = 0.05) -> Callable[[], Outcome]:
    """Warm minus cold above a margin at every size, in the family at alpha = 0.01."""

    def judge() -> Outcome:
        found = gaps("family", depth, m=m, alpha="0.01")
        text = ", ".join(f"{size}: {float(r['gap']):+.3f}" for size, r in found.items())
        return decided(
            all(float(r["gap"]) > above for r in found.values()), f"gap by side {text}", 1
        )

    return judge


def keeps(depth: str, m: str = "10.0", below: float = 0.01) -> Callable[[], Outcome]:
    """Warm minus cold below a margin at every size."""

    def judge() -> Outcome:
        found = gaps("family", depth, m=m, alpha="0.01")
        text = ", ".join(f"{size}: {float(r['gap']):+.3f}" for size, r in found.items())
        return decided(
            all(float(r["gap"]) < below for r in found.values()), f"gap by side {text}", 1
        )

    return judge


def scale_of_the_start() -> Outcome:
    """Where the safety of depth 3 ends in the scale of the start."""
    text, holds = [], True
    for size in ("5", "20"):
        found = rows("theory_plasticity", protocol="family", depth="3", size=size, m="10.0")
        pairs = sorted((float(r["alpha"]), float(r["gap"])) for r in found)
        text.append(f"side {size}: " + ", ".join(f"{a:g}: {g:+.3f}" for a, g in pairs))
        holds &= all(g < 0.01 for _, g in pairs)
    return decided(holds, "gap by scale, " + "; ".join(text), 1)


def deeper_is_not_worse(protocol: str, column: str, what: str) -> Callable[[], Outcome]:
    """Depth 3 has no larger number than depth 2 at every size: quartiles apart decide."""

    def judge() -> Outcome:
        two, three = gaps(protocol, "2"), gaps(protocol, "3")
        text, verdicts = [], []
        for size in sorted(two.keys() & three.keys(), key=int):
            a, b = two[size], three[size]
            worse = float(b[f"{column}_low"]) > float(a[f"{column}_high"])
            better = float(b[f"{column}_high"]) < float(a[f"{column}_low"])
            verdicts.append(FAILS if worse else HOLDS if better else UNDECIDED)
            text.append(f"{size}: {float(a[column]):.2f} / {float(b[column]):.2f}")
        order = (FAILS, UNDECIDED, HOLDS)
        counts = sorted({int(r["seeds"]) for r in two.values()})
        told = f"{what} of depth 2 / 3 by side {', '.join(text)}"
        return Outcome(min(verdicts, key=order.index), told, " to ".join(map(str, counts)))

    return judge


def kleinman() -> Outcome:
    """Squared errors at 100 x 100, cold and warm; the losses of both depths, start by start."""
    error = {
        (depth, run): by_seed(
            rows("theory_limits", part="kleinman", setting=depth, method=run), "error"
        )
        for depth in ("depth 2", "depth 3")
        for run in ("cold", "warm")
    }
    gaps = [{seed: error[d, "warm"][seed] - error[d, "cold"][seed] for seed in error[d, "cold"]}
            for d in ("depth 3", "depth 2")]  # fmt: skip
    medians = "; ".join(
        f"{d}: {middle([*error[d, 'cold'].values()]):.3f} to "
        f"{middle([*error[d, 'warm'].values()]):.3f}"
        for d in ("depth 2", "depth 3")
    )
    pair = paired(*gaps, sign=-1, digits=2)
    text = f"squared error cold to warm, {medians}; loss of depth 3 minus 2 {pair.text}"
    return pair._replace(text=text)


DEPTH, PLASTICITY, MENON = "theory_depth.py", "theory_plasticity.py", "theory_menon.py"
FAMILY = "(α, m) family, m = 10, α = 0.01, four blocks"
CHAIN = "family, α = 0.01, m = 10: the diagonal, then the chain above it, sides 5 to 100"
CLAIMS = (
    Claim(
        "From depth 3 on all observed entries are coupled, at depth 2 only inside a block",
        "theory_coupling.py",
        "10 x 10, Gaussian starts, depths 2 to 10",
        coupled,
    ),
    Claim("Depth 3 and more ends at rank one as the start shrinks", DEPTH, FAMILY, family(True)),
    Claim("Depth 2 does not", DEPTH, FAMILY, family(False)),
    Claim(
        "A block-diagonal start keeps full rank at every depth",
        DEPTH,
        "m = ∞",
        family(True, diagonal=True),
    ),
    Claim(
        "The end is the closed form's", DEPTH, "the whole family, diagonal and blocks", closed_form
    ),
    Claim(
        "Gaussian starts of depth 3 and more end at rank one",
        DEPTH,
        "10 x 10, α = 0.01",
        gaussian(True),
    ),
    Claim("Gaussian starts of depth 2 do not", DEPTH, "10 x 10, α = 0.01", gaussian(False)),
    Claim(
        "Menon's question, depth 3 and more: the flow ends on the hyperbola",
        MENON,
        "family, m = 10, α = 0.01",
        menon("m = 10", True),
    ),
    Claim(
        "Menon's question, depth 2: it does not", MENON, "the same start", menon("m = 10", False)
    ),
    Claim(
        "Menon's question, diagonal start: it never does",
        MENON,
        "m = ∞, α = 0.01",
        menon("m = inf", True),
    ),
    Claim(
        "Menon's question, Gaussian starts of depth 3 and more (beyond the family)",
        MENON,
        "α = 0.01",
        menon("Gaussian", True),
    ),
    Claim("Depth 2 loses plasticity", PLASTICITY, CHAIN, loses("2")),
    Claim("Depth 3 does not", PLASTICITY, CHAIN, keeps("3")),
    Claim("Depth 4 does not", PLASTICITY, "the same, sides 5 to 20", keeps("4")),
    Claim("Depth 10 does not", PLASTICITY, "the same, sides 5 to 20", keeps("10")),
    Claim(
        "Depth 3 does not at m = 1,000 (nearer to a diagonal start)",
        PLASTICITY,
        "the family at another m",
        keeps("3", "1000.0"),
    ),
    Claim("Depth 3 loses from a diagonal start", PLASTICITY, "m = ∞", loses("3", "inf")),
    Claim(
        "Depth 3 does not lose at any scale of the start (an over-reading)",
        PLASTICITY,
        "the family, α = 0.01 to 0.5",
        scale_of_the_start,
    ),
    Claim(
        "Depth 3 loses no more than depth 2 from Gaussian starts (an over-reading)",
        PLASTICITY,
        "the same data",
        deeper_is_not_worse("gaussian", "gap", "gap"),
    ),
    Claim(
        "Depth 3 loses no more than depth 2 on random entries (an over-reading)",
        PLASTICITY,
        "random matrices and entries",
        deeper_is_not_worse("random", "gap", "gap"),
    ),
    Claim(
        "Depth 3 completes better than depth 2 when cold",
        PLASTICITY,
        "random matrices and entries",
        deeper_is_not_worse("random", "cold_rmse", "cold error"),
    ),
    Claim(
        "Depth 3 loses no more than depth 2 in Kleinman's setting (an over-reading)",
        "theory_limits.py",
        "100 x 100, rank 5, 1,000 then 1,500 entries",
        kleinman,
    ),
    Claim(
        "The paper's own sizes, steps and figures",
        "",
        "",
        not_run("not recoverable from the paper's stored text; no code is public"),
    ),
)
