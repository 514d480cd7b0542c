"""A score table and a selection -> one self-contained HTML page that explains both."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..score.table import ScoreTable
from .figures import draw_beta, draw_classes, draw_map, inline_png

# More classes than this make a bar chart that nobody can read.
MAX_BARS = 120


def describe_selection(table: ScoreTable, kept: NDArray[np.int64], seed: int = 0) -> dict[str, Any]:
    """Describe a selection in numbers: what is kept of each class, and how unlike random it is.

    Args:
        table: The scores.
        kept: Positions that stay.
        seed: Of the random subset that the selection is compared with.

    Returns:
        ``classes`` (label, examples, kept, share), ``empty`` classes, ``overlap`` (share of the
        kept examples that another selection of the same size keeps too), means of the score and
        of the probability for all and for the kept examples.

    Example:
        >>> table = ScoreTable(np.arange(4), np.array([0, 0, 1, 1]), np.array([0.3, 0.2, 0.1, 0.0]),
        ...     np.full(4, 0.5), np.full(4, 30))
        >>> describe_selection(table, np.array([0, 1]))["empty"]
        [1]
    """
    labels, sizes = np.unique(table.label, return_counts=True)
    counts = np.bincount(np.searchsorted(labels, table.label[kept]), minlength=len(labels))
    ratio = 1.0 - len(kept) / len(table)
    rivals: dict[str, dict[str, Any]] = {
        "random": {"method": "random", "seed": seed + 1},
        "DUAL top-k": {"method": "top"},
        **{name: {"method": "top", "by": name} for name in table.peers},
    }
    mine = np.zeros(len(table), dtype=bool)
    mine[kept] = True
    overlap = {
        name: float(mine[_quiet_select(table, ratio, options)].mean())
        for name, options in rivals.items()
    }
    return {
        "classes": [
            {"label": int(c), "examples": int(n), "kept": int(k), "share": float(k / n)}
            for c, n, k in zip(labels, sizes, counts, strict=True)
        ],
        "empty": [int(c) for c, k in zip(labels, counts, strict=True) if k == 0],
        "overlap": overlap,
        "score": {"all": _mean(table.score), "kept": _mean(table.score[kept])},
        "mean_prob": {"all": _mean(table.mean_prob), "kept": _mean(table.mean_prob[kept])},
        "unscored": int(np.isnan(table.score).sum()),
    }


def _quiet_select(table: ScoreTable, ratio: float, options: dict[str, Any]) -> NDArray[np.int64]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once for the selection that is reported
        return table.select(ratio, ignore_nonfinite=True, **options)


def _mean(x: NDArray) -> float:
    return float(np.nanmean(x)) if np.isfinite(x).any() else float("nan")


_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:72rem;
margin:2rem auto;padding:0 1.5rem}
h1{font-size:1.7rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:0 0 .3rem}
.lead{color:#444;margin:0 0 1.2rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(27rem,1fr));gap:1.6rem}
section{border:1px solid #ddd;border-radius:8px;padding:1rem 1.2rem;min-width:0}
section p{color:#444;margin:.2rem 0 .6rem;font-size:.92rem}
img{width:100%;height:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
td,th{text-align:left;padding:.22rem .5rem;border-bottom:1px solid #eee}
td.n,th.n{text-align:right}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr));gap:1rem;
margin-bottom:1.6rem}
.tile{border:1px solid #ddd;border-radius:8px;padding:.7rem 1rem}
.tile b{display:block;font-size:1.45rem}.tile span{color:#555;font-size:.9rem}
.warn{border-left:5px solid #D55E00;background:#fdf1ea;padding:.6rem 1rem;margin:0 0 1.2rem}
"""


def _table(header: list[str], rows: list[list[Any]]) -> str:
    """Return rows of text and numbers as HTML; numbers are set to the right."""

    def cell(value: Any, tag: str, number: bool) -> str:
        return f"<{tag}{' class=n' if number else ''}>{html.escape(str(value))}</{tag}>"

    right = [i > 0 for i in range(len(header))]
    head = "".join(cell(v, "th", r) for v, r in zip(header, right, strict=True))
    body = "".join(
        "<tr>" + "".join(cell(v, "td", r) for v, r in zip(row, right, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _notices(about: dict[str, Any], table: ScoreTable, settings: dict[str, Any]) -> str:
    notes = []
    if about["empty"]:
        names = ", ".join(map(str, about["empty"][:20]))
        advice = "per_class=True (--per-class) gives every class its share."
        if settings["per_class"]:
            advice = "A lower prune ratio, or min_per_class=1, leaves some of each."
        notes.append(f"{len(about['empty'])} classes are empty after pruning: {names}. {advice}")
    if about["unscored"]:
        notes.append(f"{about['unscored']:,} examples have no complete window and rank last.")
    if table.meta.get("nonfinite"):
        notes.append(f"{table.meta['nonfinite']:,} observations had NaN or infinite logits.")
    return "".join(f'<p class="warn">{html.escape(note)}</p>' for note in notes)


def build_report(
    table: ScoreTable, prune_ratio: float = 0.5, *, title: str = "Dataset pruning", **options: Any
) -> str:
    """Return the whole page as one string of HTML, without scripts or links to anywhere.

    Args:
        table: The scores.
        prune_ratio: Fraction removed, in [0, 1).
        title: Heading.
        **options: Further arguments of ``ScoreTable.select``.

    Returns:
        HTML; needs matplotlib.
    """
    kept = table.select(prune_ratio, **options)
    plan_options = {k: v for k, v in options.items() if k not in ("within", "ignore_nonfinite")}
    settings = dict(table.plan(prune_ratio, **plan_options).settings or {})
    about = describe_selection(table, kept, settings["seed"])
    sections = [*_plots(table, kept, settings, about), *_tables(table, kept, settings, about)]
    tiles = _tiles(table, kept, settings, about)
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta name=viewport content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f"<p class=lead>{len(kept):,} of {len(table):,} examples are kept by method "
        f"“{html.escape(settings['method'])}”.</p>{_notices(about, table, settings)}"
        + "<div class=tiles>"
        + "".join(f"<div class=tile><b>{b}</b><span>{s}</span></div>" for b, s in tiles)
        + "</div><div class=grid>"
        + "".join(f"<section><h2>{h}</h2><p>{p}</p>{c}</section>" for h, p, c in sections)
        + "</div></body></html>\n"
    )


Kept = NDArray[np.int64]


def _least_kept(about: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(about["classes"], key=lambda c: (c["share"], c["label"]))


def _plots(
    table: ScoreTable, kept: Kept, settings: dict[str, Any], about: dict[str, Any]
) -> list[tuple[str, str, str]]:
    """Return heading, text and figure of each section with a figure."""
    many = len(about["classes"]) > MAX_BARS
    classes = _least_kept(about)[:MAX_BARS] if many else about["classes"]
    return [
        (
            "Score against mean probability",
            "Difficult examples are on the left, learned ones on the right; wrong labels sit at "
            "the bottom left. Orange is what stays.",
            inline_png(lambda a: draw_map(a, table, kept)),
        ),
        (
            "What the Beta distribution favours",
            "The density multiplies the score of every example; it moves to easy examples as more "
            "is pruned.",
            inline_png(lambda a: draw_beta(a, table, kept, settings)),
        ),
        (
            "Kept share per class",
            f"{len(about['classes']):,} classes, {len(about['empty']):,} of them empty after "
            f"pruning{'; the least kept are shown' if many else ''}.",
            inline_png(lambda a: draw_classes(a, classes, len(kept) / len(table))),
        ),
    ]


def _tables(
    table: ScoreTable, kept: Kept, settings: dict[str, Any], about: dict[str, Any]
) -> list[tuple[str, str, str]]:
    """Return heading, text and table of each section with a table."""
    overlap = [[name, f"{share:.1%}"] for name, share in about["overlap"].items()]
    least = [
        [c["label"], f"{c['examples']:,}", f"{c['kept']:,}", f"{c['share']:.1%}"]
        for c in _least_kept(about)[:10]
    ]
    return [
        (
            "Overlap with other selections of the same size",
            f"By chance a share of {len(kept) / len(table):.1%} would be common.",
            _table(["selection", "share in common"], overlap),
        ),
        (
            "Classes that keep least",
            "Shares far from each other change the balance the model learns.",
            _table(["class", "examples", "kept", "share"], least),
        ),
        (
            "Settings",
            "The same settings and scores select the same examples anywhere.",
            _table(
                ["setting", "value"], [[k, _short(v)] for k, v in _all_settings(settings, table)]
            ),
        ),
    ]


def _tiles(
    table: ScoreTable, kept: Kept, settings: dict[str, Any], about: dict[str, Any]
) -> list[tuple[str, str]]:
    """Return the numbers at the head of the page, each with what it says."""
    prob = about["mean_prob"]
    return [
        (f"{len(kept):,}", f"of {len(table):,} examples stay"),
        (f"{settings['prune_ratio']:.1%}", "are pruned"),
        (settings["method"], f"method, seed {settings['seed']}"),
        (f"{prob['all']:.3f} → {prob['kept']:.3f}", "mean probability, all → kept"),
        (f"{about['overlap']['random']:.1%}", "in common with a random subset"),
    ]


def _all_settings(settings: dict[str, Any], table: ScoreTable) -> list[tuple[str, Any]]:
    shown = [(k, v) for k, v in settings.items() if k != "quotas"]
    recorded = [(f"recorded: {k}", v) for k, v in table.meta.items() if k != "nonfinite_examples"]
    return [*shown, *recorded, ("digest of the scores", table.digest())]


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
