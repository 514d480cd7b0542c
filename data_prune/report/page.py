"""A score table and a selection -> one self-contained HTML page that explains both."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..score.table import ScoreTable
from .figures import (
    MAX_BARS,
    draw_beta,
    draw_classes,
    draw_map,
    image_tag,
    inline_png,
    say_beta,
    say_classes,
    say_map,
    shortened,
)
from .markup import Html, table_of, whole_page
from .thumbnails import thumbnail
from .wrong import wrong_labels

# Examples in the lists of highest scores and of likely wrong labels, and letters of a key in them.
LISTED, MAX_KEY = 12, 64


def describe_selection(table: ScoreTable, kept: NDArray[np.int64], seed: int = 0) -> dict[str, Any]:
    """Describe a selection in numbers: what is kept of each class, and how unlike random it is.

    Args:
        table: The scores.
        kept: Positions that stay.
        seed: Of the random subset that the selection is compared with.

    Returns:
        ``classes`` (label, examples, kept, share; none where no example has a label), ``empty``
        classes, ``overlap`` (share of the
        kept examples that another selection of the same size keeps too), means of the score and
        of the probability for all and for the kept examples.

    Example:
        >>> table = ScoreTable(np.arange(4), np.array([0, 0, 1, 1]), np.array([0.3, 0.2, 0.1, 0.0]),
        ...     np.full(4, 0.5), np.full(4, 30))
        >>> describe_selection(table, np.array([0, 1]))["empty"]
        [1]
    """
    labels, sizes = np.unique(table.label, return_counts=True)
    names = table.meta.get("label_names")
    counts = np.bincount(np.searchsorted(labels, table.label[kept]), minlength=len(labels))
    classes = [
        {"label": _label(int(c), names), "examples": int(n), "kept": int(k), "share": float(k / n)}
        for c, n, k in zip(labels, sizes, counts, strict=True)
    ]
    classes = [] if labels.tolist() == [-1] else classes
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
        "classes": classes,
        "empty": [c["label"] for c in classes if c["kept"] == 0],
        "overlap": overlap,
        "score": {"all": _mean(table.score), "kept": _mean(table.score[kept])},
        "mean_prob": {"all": _mean(table.mean_prob), "kept": _mean(table.mean_prob[kept])},
        "unscored": int(np.isnan(table.score).sum()),
    }


def _label(label: int, names: list[str] | None) -> int | str:
    """Return a label as a person knows it."""
    if label < 0:
        return "none"
    return label if names is None else names[label]


def _quiet_select(table: ScoreTable, ratio: float, options: dict[str, Any]) -> NDArray[np.int64]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once for the selection that is reported
        return table.select(ratio, ignore_nonfinite=True, **options)


def _mean(x: NDArray) -> float:
    return float(np.nanmean(x)) if np.isfinite(x).any() else float("nan")


def _notices(about: dict[str, Any], table: ScoreTable, settings: dict[str, Any]) -> str:
    notes = []
    if about["empty"]:
        names = ", ".join(map(str, about["empty"][:20]))
        more = f" and {len(about['empty']) - 20:,} more" if len(about["empty"]) > 20 else ""
        notes.append(
            f"{_number(len(about['empty']), 'class', 'classes')} "
            f"{'is' if len(about['empty']) == 1 else 'are'} empty after pruning: {names}{more}. "
            f"{_advice(about, settings)}"
        )
    if about["unscored"]:
        few = _number(about["unscored"], "example has", "examples have")
        notes.append(f"{few} no complete window: last in the ranking.")
    if table.meta.get("nonfinite"):
        notes.append(f"{table.meta['nonfinite']:,} observations had NaN or infinite logits.")
    return "".join(f'<p class="warn">{html.escape(note)}</p>' for note in notes)


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _advice(about: dict[str, Any], settings: dict[str, Any]) -> str:
    """Say what would leave some of every class, given what was asked for."""
    classes, kept = len(about["classes"]), settings["kept"]
    if not settings["per_class"]:
        if settings["method"] == "ccs":
            return "Every method but ccs takes per_class=True, which gives every class its share."
        return "per_class=True (--per-class) gives every class its share."
    if kept < classes:
        few = _number(kept, "example", "examples")
        return f"{few} cannot be of {classes:,} classes. A lower prune ratio keeps more."
    return "A lower prune ratio, or min_per_class=1, leaves some of each."


def build_report(
    table: ScoreTable,
    prune_ratio: float = 0.5,
    *,
    title: str = "Dataset pruning",
    data: Any = None,
    **options: Any,
) -> str:
    """Return the whole page as one string of HTML, without scripts or links to anywhere.

    Args:
        table: The scores.
        prune_ratio: Fraction removed, in [0, 1).
        title: Heading.
        data: The data set, row i for example i of the table; where an example is or holds an
            image (Pillow, array, tensor), the lists show it. Only the examples listed are read.
        **options: Further arguments of ``ScoreTable.select``.

    Returns:
        HTML; needs matplotlib.
    """
    if data is not None and len(data) != len(table):
        raise ValueError(f"data must have {len(table)} examples as the table has, got {len(data)}")
    kept = table.select(prune_ratio, **options)
    plan_options = {k: v for k, v in options.items() if k != "ignore_nonfinite"}
    settings = dict(table.plan(prune_ratio, **plan_options).settings or {})
    about = describe_selection(table, kept, settings["seed"])
    sections = [
        *_plots(table, kept, settings, about),
        *_lists(table, kept, data),
        *_tables(table, kept, settings, about),
    ]
    lead = f"{len(kept):,} of {len(table):,} examples are kept by method “{settings['method']}”."
    notices, tiles = _notices(about, table, settings), _tiles(table, kept, settings, about)
    return whole_page(title, lead, notices, tiles, sections)


Kept = NDArray[np.int64]


def _least_kept(about: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(about["classes"], key=lambda c: (c["share"], str(c["label"])))


def _plots(
    table: ScoreTable, kept: Kept, settings: dict[str, Any], about: dict[str, Any]
) -> list[tuple[str, str, str]]:
    """Return heading, text and figure of each section with a figure."""
    classes, target = about["classes"], len(kept) / len(table)
    drawn = [
        (
            "Score against mean probability",
            "Difficult examples are on the left, learned ones on the right; wrong labels sit at "
            "the bottom left. Orange is what stays.",
            inline_png(lambda a: draw_map(a, table, kept), say_map(table, kept)),
        ),
        (
            "What the Beta distribution favours" if "alpha" in settings else "What stays",
            "The density multiplies the score of every example; it moves to easy examples as more "
            "is pruned."
            if "alpha" in settings
            else "How probable the label is, for all examples and for those that stay.",
            inline_png(
                lambda a: draw_beta(a, table, kept, settings), say_beta(table, kept, settings)
            ),
        ),
    ]
    if not classes:
        return drawn
    text = f"{len(classes):,} classes, {len(about['empty']):,} of them empty after pruning."
    if len(classes) > MAX_BARS:
        text += " Each dot is a class, over the number of its examples."
    figure = inline_png(lambda a: draw_classes(a, classes, target), say_classes(classes, target))
    return [*drawn, ("Kept share per class", text, figure)]


def _lists(table: ScoreTable, kept: Kept, data: Any) -> list[tuple[str, str, str]]:
    """Return heading, text and table of the examples that a person should look at."""
    stays = np.zeros(len(table), dtype=bool)
    stays[kept] = True
    names = table.meta.get("label_names")

    def example(row: int) -> list[Any]:
        shown = _label(int(table.label[row]), names)
        key = shortened(str(table.key[row : row + 1].tolist()[0]), MAX_KEY)
        image = None if data is None else thumbnail(data[row])
        cells = [] if data is None else [Html("")]
        if image is not None:
            cells = [Html(image_tag(image, f"example {key}, label {shown}"))]
        return [key, *cells, shown]

    header = ["key", *([] if data is None else ["image"]), "label"]
    known = np.flatnonzero(~np.isnan(table.score))
    best = known[np.lexsort((table.ids[known], -table.score[known]))][:LISTED].tolist()
    highest = [
        [
            *example(i),
            f"{table.score[i]:.4f}",
            f"{table.mean_prob[i]:.3f}",
            "yes" if stays[i] else "",
        ]
        for i in best
    ]
    found = [
        (
            "Highest scores",
            "Hard and undecided: what the score alone would keep first."
            if highest
            else "No example has a score.",
            table_of([*header, "score", "mean p", "kept"], highest) if highest else "",
        )
    ]
    if (table.label < 0).all():
        return found
    wrong = wrong_labels(table)
    rows = [
        [*example(i), f"{p:.3f}", f"{m:.3f}", "yes" if stays[i] else ""]
        for i, p, m in list(
            zip(wrong.rows.tolist(), wrong.probability, wrong.typical, strict=True)
        )[:LISTED]
    ]
    text = (
        f"{len(wrong):,} labels are far less probable than the median of their class; the "
        f"{len(rows)} least probable are listed. data-prune wrong writes them all."
    )
    if wrong.merely_hard:
        text = "Improbable labels still move while they are recorded: hard rather than wrong."
    elif not rows:
        text = "No label is far less probable than the median of its class."
    header = [*header, "mean p", "class median", "kept"]
    return [*found, ("Likely wrong labels", text, table_of(header, rows) if rows else "")]


def _tables(
    table: ScoreTable, kept: Kept, settings: dict[str, Any], about: dict[str, Any]
) -> list[tuple[str, str, str]]:
    """Return heading, text and table of each section with a table."""
    overlap = [[name, f"{share:.1%}"] for name, share in about["overlap"].items()]
    least = [
        [c["label"], f"{c['examples']:,}", f"{c['kept']:,}", f"{c['share']:.1%}"]
        for c in _least_kept(about)[:10]
    ]
    balance = (
        "Classes that keep least",
        "Shares far from each other change the balance the model learns.",
        table_of(["class", "examples", "kept", "share"], least),
    )
    no_classes = ("Classes", "The table has no labels: nothing is known of classes.", "")
    return [
        (
            "Overlap with other selections of the same size",
            f"By chance a share of {len(kept) / len(table):.1%} would be common.",
            table_of(["selection", "share in common"], overlap),
        ),
        balance if least else no_classes,
        (
            "Settings",
            "The same settings and scores select the same examples anywhere.",
            table_of(
                ["setting", "value"],
                [[k, _short(v)] for k, v in _all_settings(settings, table)],
                " class=settings",
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
        (f"{_known(prob['all'])} → {_known(prob['kept'])}", "mean probability, all → kept"),
        (f"{about['overlap']['random']:.1%}", "in common with a random subset"),
    ]


def _known(value: float) -> str:
    return "unknown" if np.isnan(value) else f"{value:.3f}"


def _all_settings(settings: dict[str, Any], table: ScoreTable) -> list[tuple[str, Any]]:
    hidden = ("quotas", "nonfinite_examples", "label_names")
    shown = [(k, v) for k, v in settings.items() if k not in hidden]
    recorded = [(f"recorded: {k}", v) for k, v in table.meta.items() if k not in hidden]
    return [*shown, *recorded, ("digest of the scores", table.digest())]


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
