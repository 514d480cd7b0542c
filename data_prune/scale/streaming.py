"""Parquet in, Parquet out: the same selection for tables larger than memory or machine.

The Parquet is read twice: first the columns of a table, which are held to the checks of
``ScoreTable`` and of which those that a selection looks at, at most some 30 bytes a row, are kept
on disk (or in Ray's object store); at the end everything, to write the rows that stay. Between
the two, small mergeable summaries (counts, class sizes, the ten highest scores) of those columns
find the threshold. A pass forgets its rows, so that the memory does not depend on their number.
What the summaries are made of is exactly what the table in memory uses.
"""

from __future__ import annotations

import json
import operator
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from specgd_common.files import replacing, write_text
from specgd_common.folders import making_folder
from specgd_common.optional import needed

from ..score.keys import is_list, with_suffix
from ..score.parquet import (
    batch_arrays,
    check_has,
    checked_batches,
    columns_in,
    open_parquet,
    stored_in,
)
from ..score.table import diverged
from ..select.planner import Options, plan_rows, split_wishes
from ..select.survey import Columns
from ..select.together import plan_groups
from ..select.topk import Fold, find_threshold
from .narrow import Narrow, check_lists
from .writing import BATCH, write_kept, write_lists

NEEDED = ("key", "label", "score", "mean_prob")
# Ids compared with each other at once: 32 MB of them.
IDS = 1 << 22


class Engine(Protocol):
    """Run over the record batches of all files."""

    def fold(self, f: Callable[[Columns], Any], merge: Callable[[Any, Any], Any]) -> Any:
        """Return ``f`` of every batch of the selection's columns, merged in any order."""

    def write(self, keep: Callable[[Columns], NDArray], destination: Any) -> int:
        """Write the rows of all files that ``keep`` marks; return their number."""


def select_parquet(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    prune_ratio: float,
    *,
    engine: str = "local",
    dropped: str | os.PathLike | None = None,
    ignore_nonfinite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Keep the rows of a score table in Parquet that ``ScoreTable.select`` would keep.

    Two passes over the files: one takes out the columns that the method looks at, one writes.
    What is searched in between (see ``topk``) are those columns alone.

    Args:
        source: A Parquet file, or a folder of them, as ``ScoreTable.to_parquet`` writes them;
            other columns are carried along.
        destination: Must not exist; it appears when it is whole. With the local engine a file
            becomes a file and a folder a folder with the same names; Ray writes a folder, its
            rows in any order. Beside it the local engine needs room for the columns while it runs.
            A name that ends in .txt, .csv or .npy becomes a plain list of the kept keys.
        prune_ratio: Fraction REMOVED, in [0, 1).
        engine: "local" streams on this machine; "ray" runs the same passes on Ray Data, over
            files that every worker can read (see ``ray_data``).
        dropped: New file, .txt, .csv or .npy, for a plain list of the keys that are dropped.
        ignore_nonfinite: Accept tables whose recording met NaN or infinite logits.
        **options: method, by, c_d, C, beta_sum, anchor, anchor_statistic, seed, per_class,
            min_per_class, preset, cutoff, strata, keep and drop as for ``ScoreTable.select``;
            groups, classes and weights by the names of columns of the files.

    Returns:
        The settings of the selection, also written to ``<destination>.json``.

    Raises:
        FileNotFoundError: If there is no Parquet file at ``source``.
        FileExistsError: If ``destination`` exists.
        ValueError: As ``ScoreTable.from_parquet`` and ``ScoreTable.select``.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from data_prune import ScoreTable
        >>> rng = np.random.default_rng(0)
        >>> table = ScoreTable(np.arange(100), rng.integers(3, size=100), rng.uniform(size=100),
        ...     rng.uniform(size=100), np.full(100, 30))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table.to_parquet(f"{folder}/scores.parquet")
        ...     settings = select_parquet(f"{folder}/scores.parquet", f"{folder}/kept.parquet", 0.9)
        ...     kept = ScoreTable.from_parquet(f"{folder}/kept.parquet")
        >>> kept.key.tolist() == table.select(0.9).tolist()
        True
    """
    if engine not in ("local", "ray"):
        raise ValueError(f"engine must be 'local' or 'ray', got {engine!r}")
    needed("ray" if engine == "ray" else "pyarrow", "ray" if engine == "ray" else "data")
    source, destination = Path(source), Path(destination)
    files = parquet_files(source)
    if os.path.lexists(destination):
        raise FileExistsError(f"{destination} exists and is not overwritten")
    record = Path(f"{destination}.json")
    check_record(record)
    if dropped is not None and os.path.lexists(with_suffix(dropped)):
        raise FileExistsError(f"{dropped} exists and is not overwritten")
    wishes, options = split_wishes(options)
    how, narrow = _check_files(files, ignore_nonfinite, options, wishes)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with _engine(engine, files, source, destination, narrow) as (here, aside):
        plan = (plan_groups if how.grouped else plan_rows)(here.fold, prune_ratio, how)
        check_unique_ids(here.fold, plan.total, source)
        if narrow.forced:
            check_lists(here.fold, narrow, source)
        search = find_threshold(
            lambda f, merge: here.fold(lambda c: f(plan.chunk(c)), merge), plan.quotas, plan.total
        )
        settings = {**plan.settings, "source": str(source), "engine": engine}

        def keep(columns: Columns) -> NDArray:
            return search.keep(plan.chunk(columns))

        with replacing(dropped) if dropped is not None else nullcontext() as rest:
            written = None
            if not is_list(destination):
                written = here.write(keep, aside)
            kept_list = (aside, destination) if is_list(destination) else None
            if kept_list is not None or rest is not None:
                lists = [kept_list, None if rest is None else (rest, Path(str(dropped)))]
                written = write_lists(files, narrow, keep, lists)
            if written != settings["kept"]:
                raise RuntimeError(
                    f"{written} rows were written, {settings['kept']} selected: {source} has "
                    "changed meanwhile"
                )
            # Before the destination: what a killed run leaves must not stop the next one.
            write_text(record, json.dumps(settings, indent=2))
    return settings


@contextmanager
def _engine(
    name: str, files: list[Path], source: Path, destination: Path, narrow: Narrow
) -> Iterator[tuple[Engine, Any]]:
    """Give an engine and where it writes; that becomes the destination if the block succeeds."""
    one_file = is_list(destination) or (name == "local" and not source.is_dir())
    aside: AbstractContextManager[Any] = (
        replacing(destination) if one_file else making_folder(destination)
    )
    if name == "ray":
        from .ray_data import ray_engine

        with aside as target, ray_engine(files, narrow, BATCH) as on_ray:
            yield on_ray, target
        return
    with aside as target, tempfile.TemporaryFile(dir=destination.parent) as scratch:
        yield _Local(files, source, narrow, scratch), target


def parquet_files(source: Path) -> list[Path]:
    """Return the file itself, or the Parquet files of a folder by name."""
    files = [source]
    if source.is_dir():
        files = sorted(file for file in source.rglob("*.parquet") if not file.name.startswith("."))
    if not files or not files[0].exists():
        what = "does not exist" if files else "holds no Parquet file"
        raise FileNotFoundError(f"{source}: {what}")
    return files


def check_record(record: Path) -> None:
    """Refuse to replace a file that no selection has written."""
    if not os.path.lexists(record):
        return
    try:
        ours = {"kept", "settings"} & set(json.loads(record.read_bytes()))
    except (ValueError, TypeError, OSError, RecursionError):
        ours = set()
    if not ours:
        raise FileExistsError(f"{record} exists, is no record of a selection and is not replaced")


def _check_files(
    files: list[Path], ignore_nonfinite: bool, options: dict[str, Any], wishes: dict[str, Any]
) -> tuple[Options, Narrow]:
    """Return how to select and what to read, after a look at what the files say of themselves."""
    bad = rows = 0
    for file in files:
        with open_parquet(file) as reader:
            columns = columns_in(reader, file)
            bad += stored_in(reader, file).meta.get("nonfinite", 0)
            rows += reader.metadata.num_rows
            named = [wishes.get(name) for name in ("groups", "classes", "weights")]
            check_has(reader, [name for name in named if isinstance(name, str)], file)
    if rows == 0:
        raise ValueError(f"a score table needs at least one example, {files[0]} has none")
    if bad and not ignore_nonfinite:
        raise diverged({"nonfinite": bad})
    how = Options(**options, columns=columns)
    names = [*NEEDED, *({str(how.by)} - set(NEEDED))]
    narrow = Narrow.of_files(files, names, wishes)
    if narrow.classes is not None:
        if options.get("per_class") is False:
            raise ValueError("classes need per_class=True or None, got False")
        options = {**options, "per_class": True}
    wished: dict[str, Any] = {
        "forced": narrow.forced,
        "weighed": narrow.weights is not None,
        "grouped": narrow.groups is not None,
        "class_names": narrow.labels if narrow.classes is None else narrow.class_names,
    }
    return Options(**options, **wished, columns=columns), narrow


def check_unique_ids(fold: Fold, total: int, source: Path) -> None:
    """Refuse rows of which two have the same id, in as little memory as a selection takes.

    Args:
        fold: Applies a function to every batch of columns and merges the results.
        total: Number of rows.
        source: For the message.
    """

    def ends(columns: Columns) -> list[tuple[int, int] | None]:
        ids = columns["id"]
        if len(ids) == 0:
            return []
        return [(int(ids[0]), int(ids[-1])) if (ids[1:] > ids[:-1]).all() else None]

    spans = fold(ends, operator.add)
    if None not in spans:
        ordered = sorted(spans)
        if all(a[1] < b[0] for a, b in pairwise(ordered)):
            return
    groups = np.uint64(-(-total // IDS))
    for group in range(int(groups)):

        def of_group(columns: Columns, group: int = group) -> list[NDArray[np.uint64]]:
            mixed = columns["id"] * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
            return [columns["id"][mixed % groups == np.uint64(group)]]

        ids = np.sort(np.concatenate(fold(of_group, operator.add)))
        twice = ids[1:][ids[1:] == ids[:-1]]
        if len(twice):
            raise ValueError(f"{source}: keys must differ, got the one of id {twice[0]} again")


class _Local:
    """Read one batch of rows after the other, on this machine."""

    def __init__(self, files: list[Path], source: Path, narrow: Narrow, scratch: IO) -> None:
        self.files, self.source, self.narrow, self.scratch = files, source, narrow, scratch
        self._taken_out = False

    def _take_out(self) -> None:
        """Copy the columns of all files into the scratch file, keys as ids of eight bytes."""
        pa, narrow = needed("pyarrow", "data"), self.narrow
        writer = None
        for file in self.files:
            for arrays, batch in checked_batches(file, BATCH, narrow.labels, narrow.more):
                some = pa.record_batch(narrow.of(batch, file, arrays))
                writer = writer or pa.ipc.new_stream(self.scratch, some.schema)
                writer.write_batch(some)
        assert writer is not None  # a table without rows was refused
        writer.close()
        self._taken_out = True

    def fold(self, f: Callable[[Columns], Any], merge: Callable[[Any, Any], Any]) -> Any:
        pa = needed("pyarrow", "data")
        if not self._taken_out:
            self._take_out()
        self.scratch.seek(0)
        return reduce(merge, (f(batch_arrays(batch)) for batch in pa.ipc.open_stream(self.scratch)))

    def write(self, keep: Callable[[Columns], NDArray], destination: Any) -> int:
        if not self.source.is_dir():
            return write_kept(self.source, destination, self.narrow, keep)
        rows = 0
        for file in self.files:
            target = destination / file.relative_to(self.source)
            target.parent.mkdir(parents=True, exist_ok=True)
            rows += write_kept(file, target, self.narrow, keep)
        return rows
