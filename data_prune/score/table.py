"""Scores of all examples, with everything needed to prune by them at any ratio later."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..select.noise import example_ids
from ..select.plan import Plan, parts
from ..select.planner import Options, plan_rows, split_wishes
from ..select.survey import FORCED, GROUP, WEIGHT, WISHED, Columns
from ..select.together import plan_groups
from .arrow import as_arrow, from_arrow, to_frame
from .columns import COLUMNS, Digest, check_columns, check_unique, code_labels
from .join import averaged, joined
from .keys import plain_keys, rows_of
from .parquet import read_columns, write_columns
from .wished import wished_columns


@dataclass(frozen=True)
class ScoreTable:
    """One row per example; arrays of equal length N.

    Attributes:
        key: Identity of the example: its position (int64), or a string or uint64 key.
        label: The label used in the loss; -1 where there is none. Names become numbers in their
            order, with ``meta["label_names"]``; None is no label.
        score: DUAL score; NaN for an example without one complete window.
        mean_prob: Mean probability of the label over the epochs in which it was seen.
        observed: Number of those epochs.
        peers: Other scores by name.
        meta: How the table was recorded.

    Example:
        >>> table = ScoreTable(key=np.arange(4), label=np.zeros(4, int),
        ...     score=np.array([0.1, 0.3, 0.2, 0.0]), mean_prob=np.full(4, 0.5),
        ...     observed=np.full(4, 30))
        >>> table.select(0.5, method="top").tolist()
        [1, 2]
    """

    key: NDArray
    label: NDArray
    score: NDArray
    mean_prob: NDArray
    observed: NDArray
    peers: dict[str, NDArray] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.key, np.ndarray):
            object.__setattr__(self, "key", plain_keys(self.key))
        if isinstance(self.label, np.ndarray):
            label, names = code_labels(self.label)
            object.__setattr__(self, "label", label)
            if names is not None:
                object.__setattr__(self, "meta", {**self.meta, "label_names": names})
        taken = sorted(set(self.peers) & {*COLUMNS, "id", *WISHED})
        if taken:
            raise ValueError(
                f"peers must have names of their own, got {taken}: the examples' names are 'key'"
            )
        check_columns({**self.arrays(), **self.peers})
        if len(self.score) == 0:
            raise ValueError("a score table needs at least one example")
        check_unique(self.key)

    def __len__(self) -> int:
        return len(self.score)

    def arrays(self) -> dict[str, NDArray]:
        """Return the five columns that every table has, by name."""
        return {name: getattr(self, name) for name in COLUMNS}

    @cached_property
    def ids(self) -> NDArray[np.uint64]:
        """Return the identity of each example in a draw: a view of integer keys, else hashes."""
        return example_ids(self.key)

    def columns(self, part: slice | NDArray = slice(None)) -> Columns:
        """Return the columns that a selection reads, for a range of rows."""
        columns = {name: getattr(self, name)[part] for name in ("label", "score", "mean_prob")}
        columns["id"] = self.ids[part]
        columns |= {name: values[part] for name, values in self.peers.items()}
        return columns

    def select(
        self,
        prune_ratio: float,
        *,
        method: str | None = None,
        by: str | None = None,
        c_d: float | str | None = None,
        C: float = 15.0,
        beta_sum: float | None = None,
        anchor: int = 10,
        anchor_statistic: str = "mean",
        seed: int = 0,
        per_class: bool | None = None,
        min_per_class: int = 1,
        preset: str | None = None,
        cutoff: float | None = None,
        strata: int = 50,
        within: NDArray | Sequence[int] | None = None,
        keep: Any = None,
        drop: Any = None,
        groups: Any = None,
        classes: Any = None,
        weights: Any = None,
        ignore_nonfinite: bool = False,
    ) -> NDArray[np.int64]:
        r"""Return the positions of the examples that stay, ascending.

        Exactly ``N (1 - r)`` examples, rounded half to even. The default, "plausible", is our
        rule, not the paper's. It sets aside every label that is less probable than half the
        median of its class, or than a gap below that which parts a crowd of improbable labels
        from the others (none, where such labels move clearly more than the others while they
        are recorded: then they are hard, not wrong), and draws among the others class by
        class, without replacement, by the paper's weights at a c_D of its own:

        .. math:: w = \mathrm{Beta}(\bar p; \alpha_r, \beta_r) \cdot \mathrm{score}, \qquad
            E_w[\bar p] = (1 - r)\, E_{\mathrm{score}}[\bar p] + r\, E[\bar p],

        the means taken over what was not set aside: the fewer stay, the more typical they are.
        Labels set aside follow only where the others do not suffice, the more probable first.

        Method "beta" is the paper's: the same weights over all examples, at the c_D that is
        given. If fewer examples have a positive weight than are wanted, those with score 0 or
        none follow, drawn by the Beta density alone. Ties go to the lower key. The draw depends
        on (seed, key) only.

        Args:
            prune_ratio: r, the fraction REMOVED, in [0, 1).
            method: "plausible" (the default); "beta" (the paper, and the default where ``c_d``,
                ``beta_sum`` or ``preset`` is given); "weighted" (weights = score, no Beta); "top"
                (the highest scores); "easy" (the lowest, the other end); "ccs" (coverage-centric:
                cut the hardest, then equal budgets over strata); "random".
            by: Column that ranks or weighs the examples; default "score", for "ccs" "aum". For
                "aum" and "mean_prob" low values are the hard ones.
            c_d: How late easy examples are favoured, > 0; "cifar10" (5.5), "cifar100" (4) or
                "imagenet" (11), the papers' values; or "auto", our own rule: the value that
                keeps examples half as hard as the score alone would (see ``select.beta.auto_c_d``).
                None takes 4 for "beta"; "plausible" finds its own.
            C: Constant of the Beta parameters.
            beta_sum: alpha + beta; None takes C (the paper), C + 1 is the authors' code.
            anchor: Number of highest scores whose mean probabilities give mu_D.
            anchor_statistic: Their "mean" (the paper), or their "median", which some wrong
                labels among them do not move.
            seed: Of the draw; one seed uses the same noise at every ratio. "top", "weighted"
                and "random" are therefore nested across ratios, with ``per_class`` up to the
                rounding of the quotas. "plausible" and "beta" are not: their weights change
                with the ratio.
            per_class: Give every class its share of N. None does so for "plausible" where the
                table has labels, and for no other method.
            min_per_class: Smallest share of a class that has so many examples, while all
                classes can have it.
            preset: "paper" for the paper's rule with its c_D of 4 and without class shares.
            cutoff: Fraction of hardest examples removed first ("ccs"); None interpolates the
                values published for CIFAR-10.
            strata: Number of strata ("ccs").
            within: Choose among these positions only, all numbers still those of the whole
                table. A sweep over rising ratios is nested when each step chooses within the
                last, whatever the method ("ccs" excepted, which does not take it).
            keep: Keys of examples that stay in any case. They count among those kept.
            drop: Keys of examples that go in any case.
            groups: (N,) integers or strings, or the name of a column: examples of one value
                (a patient, a video) stay or go together. A group competes as one example with the
                means of its members; as many stay as come nearest to N (1 - r) examples.
            classes: (N,) values, or the name of a column: each of them gets its share, and at
                least ``min_per_class``, in the place of each label.
            weights: (N,) or the name of a column, at least 0: multiply the weight of every
                example in the draw; those of weight 0 come last. Not for "top" and "easy".
            ignore_nonfinite: Accept a table whose recording met NaN or infinite logits.

        Returns:
            (k,) int64.

        Raises:
            ValueError: If an argument is outside its range, a column is missing, or the
                recording met NaN or infinite logits.

        Source:
            Cho et al., ICML 2025, Beta sampling; Gumbel top-k for the draw.
        """
        wishes = {
            "within": within,
            "keep": keep,
            "drop": drop,
            "groups": groups,
            "classes": classes,
            "weights": weights,
        }
        wishes = {name: wish for name, wish in wishes.items() if wish is not None}
        plan, columns = self._planned(
            prune_ratio,
            wishes,
            method=method,
            by=by,
            c_d=c_d,
            C=C,
            beta_sum=beta_sum,
            anchor=anchor,
            anchor_statistic=anchor_statistic,
            seed=seed,
            per_class=per_class,
            min_per_class=min_per_class,
            preset=preset,
            cutoff=cutoff,
            strata=strata,
        )
        if self.meta.get("nonfinite", 0) and not ignore_nonfinite:
            raise diverged(self.meta)
        unscored = int(np.isnan(self.score).sum())
        if unscored and plan.by == "score" and plan.method != "random":
            warnings.warn(
                f"{unscored} of {len(self)} examples have no complete window of epochs and rank "
                "after all others (see coverage())",
                stacklevel=2,
            )
        return plan.draw(columns)

    def take(self, rows: NDArray | Sequence[int]) -> ScoreTable:
        """Return the table of some of the examples, with their own keys.

        Args:
            rows: Positions.
        """
        rows = np.asarray(rows)
        columns = {name: values[rows] for name, values in self.arrays().items()}
        peers = {name: values[rows] for name, values in self.peers.items()}
        return ScoreTable(**columns, peers=peers, meta={**self.meta, "examples": len(rows)})

    def order_by(self, keys: Any) -> ScoreTable:
        """Return the rows in the order of a data set that has these keys.

        Args:
            keys: (M,) key of each example of the data; the table may know more examples.

        Raises:
            TypeError: If they are of another kind than the table's.
            ValueError: If one of them comes twice, or the table does not have it.

        Example:
            >>> one = np.ones(2)
            >>> table = ScoreTable(np.array(["a", "b"]), one.astype(int), np.array([0.1, 0.2]),
            ...     one / 2, one.astype(int))
            >>> table.order_by(["b", "a"]).score.tolist()
            [0.2, 0.1]
        """
        return self.take(rows_of(self.key, keys))

    def plan(self, prune_ratio: float, **options: Any) -> Plan:
        """Return the selection before it is carried out: its ``settings`` say what would be done.

        Takes the options of ``select``.
        """
        wishes, options = split_wishes(options)
        return self._planned(prune_ratio, wishes, **options)[0]

    def _planned(
        self, prune_ratio: float, wishes: dict[str, Any], **options: Any
    ) -> tuple[Plan, Columns]:
        """Return the plan of a selection, and the columns that it reads."""
        more, names = wished_columns(self, wishes, prune_ratio) if wishes else ({}, None)
        if "classes" in wishes:
            if options.get("per_class") is False:
                raise ValueError("classes need per_class=True or None, got False")
            options["per_class"] = True
        how = Options(
            **options,
            forced=FORCED in more,
            weighed=WEIGHT in more,
            grouped=GROUP in more,
            class_names=names if "classes" in wishes else self.meta.get("label_names"),
            columns=[*COLUMNS, *self.peers],
        )
        columns = {**self.columns(), **more}
        chunks = [
            {name: values[part] for name, values in columns.items()}
            for part in parts(len(self.score))
        ]
        plan = (plan_groups if how.grouped else plan_rows)(
            lambda f, merge: reduce(merge, map(f, chunks)), prune_ratio, how
        )
        return plan, columns

    def digest(self) -> str:
        """Return a hash of all columns: two tables with the same digest prune alike.

        Example:
            >>> one = np.zeros(1)
            >>> whole = one.astype(int)
            >>> ScoreTable(whole, whole, one, one, whole).digest()[:6]
            '2e9c62'
        """
        digest = Digest()
        digest.add({**self.arrays(), **self.peers})
        return digest.hex()

    @classmethod
    def concat(cls, tables: Sequence[ScoreTable]) -> ScoreTable:
        """Join the scores of data that has grown: record the new examples alone, then join.

        The keys of a table of positions, 0 to n - 1, follow those of the tables before it, as
        ``torch.utils.data.ConcatDataset`` numbers its examples; other keys stay as they are.

        Args:
            tables: One or more, recorded alike. Scores of two runs compare only as far as the
                runs do: the same model, schedule and epochs for the new examples as for the old.

        Raises:
            ValueError: If keys are in two tables, if peers differ, or if the tables were recorded
                with another window, task or loss scale.

        Example:
            >>> one = np.ones(2)
            >>> old = ScoreTable(np.arange(2), one.astype(int), one, one, one.astype(int))
            >>> ScoreTable.concat([old, old]).key.tolist()
            [0, 1, 2, 3]
        """
        return cls(**joined(tables))

    @classmethod
    def average(cls, tables: Sequence[ScoreTable]) -> ScoreTable:
        """Average the scores of several runs over the same examples (EL2N's ten seeds).

        Args:
            tables: Two or more, with equal keys and labels.

        Raises:
            ValueError: If keys, labels or peers differ.
        """
        return cls(**averaged(tables))

    def to_parquet(self, path: str | os.PathLike) -> None:
        """Write one Parquet file: a column for each array, ``meta`` and the digest as metadata."""
        write_columns([(self.arrays(), self.peers, self.meta)], path)

    def to_frame(self, kind: str) -> Any:
        """Return the columns and peers as a table of another library.

        Args:
            kind: "pandas", "polars", "arrow" (pyarrow) or "datasets". Labels that are names come
                back as names, null where there is none. ``meta`` is not in it: ``to_parquet``
                writes the file that holds all.

        Raises:
            ImportError: If the library is not installed, naming what brings it.
            ValueError: For another kind.
        """
        columns = {**self.arrays(), **self.peers}
        return to_frame(columns, self.meta.get("label_names"), kind)

    @classmethod
    def from_frame(cls, frame: Any) -> ScoreTable:
        """Return the score table that another library's table holds.

        Args:
            frame: A table of pandas, polars, pyarrow or ``datasets``, or a dict, with the columns
                label, score, mean_prob, observed, and key unless rows are known by position.
                Every further column of numbers is a peer, and nulls in numbers are NaN.

        Raises:
            ImportError: If pyarrow is not installed.
            TypeError: If it is no such table, or a column holds another kind of values.
            ValueError: If a column is missing, or values are outside their ranges.

        Example:
            >>> columns = {"label": ["cat", None], "score": [0.1, 0.2], "mean_prob": [0.5, 0.5]}
            >>> ScoreTable.from_frame({**columns, "observed": [9, 9]}).label.tolist()
            [0, -1]
        """
        columns, peers, named = from_arrow(as_arrow(frame))
        return cls(**columns, peers=peers, meta={} if named is None else {"label_names": named})

    @classmethod
    def from_parquet(
        cls, path: str | os.PathLike, *, num_examples: int | None = None
    ) -> ScoreTable:
        """Read what ``to_parquet`` wrote.

        Args:
            path: The file.
            num_examples: Length of the data set that is to be pruned; another length is refused.

        Raises:
            ImportError: If pyarrow is not installed.
            OSError: If there is no such file, or it may not be read.
            TypeError: If a column holds another kind of values.
            ValueError: If the file is no Parquet file, lacks a column, has nulls, equal keys or
                values outside their ranges, was changed after it was written, or has another
                length.
        """
        columns, peers, meta = read_columns(path)
        result = cls(**columns, peers=peers, meta=meta)
        if num_examples is not None and len(result) != num_examples:
            raise ValueError(
                f"{path} scores {len(result)} examples, the data set has {num_examples}"
            )
        return result


def diverged(meta: dict[str, Any]) -> ValueError:
    """Return the error for a recording that met NaN or infinite logits."""
    return ValueError(
        f"{meta['nonfinite']} observations had NaN or infinite logits (first examples: "
        f"{meta.get('nonfinite_examples', [])}): the scoring run has diverged. Score again, or "
        "pass ignore_nonfinite=True to count them as not seen"
    )
