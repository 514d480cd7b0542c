"""Read, edit, write: one file, or the shards of an index one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from specgd_common.files import Replacement

from ..shrink.report import ShrinkReport
from .copies import Beside, change_beside, left_notes
from .read import Checkpoint, FileError, read
from .shards import INDEX, read_index, unfinished, writing_shards
from .write import check_format, make_folder, reason, write_checkpoint


@dataclass
class Edited:
    """What an edit makes of one file's tensors.

    Attributes:
        tensors: The new state dict.
        report: What was done; None for an undo.
        factors: By tensor name, what was multiplied; None where new values were written.
        changed: For every changed tensor all of its names.
    """

    tensors: Mapping[str, Any]
    report: ShrinkReport | None = None
    factors: Mapping[str, Tensor] | None = None
    changed: Sequence[Sequence[str]] = ()

    @classmethod
    def of(cls, tensors: Mapping[str, Any], report: ShrinkReport) -> Edited:
        """Return an edit of which a report tells all."""
        return cls(tensors, report, report.factors, [(r.name, *r.aliases) for r in report.rows])


Edit = Callable[[Mapping[str, Any]], Edited]


@dataclass(frozen=True)
class Job:
    """One change of a checkpoint.

    Attributes:
        source: A file, or ``*.safetensors.index.json``.
        target: A file of the same kind; None writes nothing.
        report: Where the report goes, if anywhere.
        reads: Other files that are read.
        key: See ``read``.
        force: Replace files that exist.
        beside: What happens to a checkpoint's other entries.
        done: What is noted in the metadata of safetensors files, beside a report's settings.
    """

    source: Path
    target: Path | None = None
    report: Path | None = None
    reads: Sequence[Path] = ()
    key: str | None = None
    force: bool = False
    beside: Beside = field(default_factory=Beside)
    done: Mapping[str, Any] = field(default_factory=dict)


def change(job: Job, edit: Edit) -> ShrinkReport | None:
    """Edit a checkpoint; its output and its report appear together, or nothing does.

    Raises:
        FileError: For anything that cannot be read or written, and files that would be replaced.
    """
    try:
        _check_paths(job)
        sharded = job.source.name.endswith(INDEX)
        return _change_shards(job, edit) if sharded else _change_file(job, edit)
    except OSError as error:  # what is read has errors of its own
        written = job.target or job.report or job.source
        raise FileError(written, f"cannot be written ({reason(error)})") from None


def _change_file(job: Job, edit: Edit) -> ShrinkReport | None:
    checkpoint = read(job.source, job.key)
    if job.target is not None:
        check_format(job.source, job.target)
    edited = _edited(job.source, edit, checkpoint)
    whole = _changed_whole(job, checkpoint, edited)
    report = _finished(job, [edited.report])
    if job.target is None:
        return _only_report(job, report)
    new = Checkpoint(edited.tensors, {**checkpoint.metadata, **_metadata(job, edited)}, whole)
    make_folder(job.target)
    with Replacement() as files:
        # The report first: factors without a shrunk file can be made again, the other way not.
        _write_report(job, report, files)
        write_checkpoint(files.open(job.target), new, job.target)
    return report


def _edited(path: Path, edit: Edit, checkpoint: Checkpoint) -> Edited:
    """Edit one file's tensors; what an edit refuses is told with the file's name."""
    try:
        return edit(checkpoint.tensors)
    except FileError:
        raise
    except KeyError as error:
        raise FileError(path, error.args[0] if error.args else error) from None
    except (ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise FileError(path, reason(error)) from None


def _changed_whole(
    job: Job, checkpoint: Checkpoint, edited: Edited
) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """Return the larger checkpoint around the weights, with what goes along changed."""
    if checkpoint.whole is None:
        if job.beside.along or job.beside.reset_optimizer:
            raise FileError(
                job.source, "holds weights alone: --along and --reset-optimizer have no object"
            )
        return None
    whole, keys = checkpoint.whole
    try:
        new = change_beside(whole, keys, job.beside, edited.changed, edited.tensors, edited.factors)
    except ValueError as error:
        raise FileError(job.source, error) from None
    if edited.report is not None:
        edited.report.notes += left_notes(whole, checkpoint.tensors, keys, job.beside)
        if job.beside.along:
            edited.report.settings["along"] = list(job.beside.along)
    return new, keys


def _change_shards(job: Job, edit: Edit) -> ShrinkReport | None:
    """Keep one shard in memory at a time; the new files appear together at the end."""
    index = read_index(job.source)
    if job.beside.along or job.beside.reset_optimizer:
        raise FileError(job.source, "shards hold weights alone: leave out --along and the like")
    reports: list[ShrinkReport | None] = []
    if job.target is None:
        paths = [job.source.parent / s for s in index.shards]
        reports = [_edited(path, edit, read(path)).report for path in paths]
        return _only_report(job, _finished(job, reports))
    make_folder(job.target)
    with writing_shards(job.target, index.content) as open_shard:
        for shard in index.shards:
            checkpoint = read(job.source.parent / shard)
            edited = _edited(job.source.parent / shard, edit, checkpoint)
            reports.append(edited.report)
            metadata = {**checkpoint.metadata, **_metadata(job, edited)}
            new = Checkpoint(edited.tensors, metadata)
            with open_shard(shard) as file:
                write_checkpoint(file, new, job.target.parent / shard)
        return _only_report(job, _finished(job, reports))


def _finished(job: Job, reports: Sequence[ShrinkReport | None]) -> ShrinkReport | None:
    """Return one report for all shards, or None after an undo."""
    # With a model, one call has shrunk all shards, and they share its report.
    found = list({id(r): r for r in reports if r is not None}.values())
    if not found:
        return None
    first = found[0]
    for other in found[1:]:
        first.rows += other.rows
        first.skipped += other.skipped
        first.notes += [n for n in other.notes if n not in first.notes]
        if first.factors is not None and other.factors is not None:
            first.factors.update(other.factors)
    if not first.rows:
        raise FileError(job.source, "no tensor of the checkpoint is selected")
    first.applied = job.target is not None
    return first


def _only_report(job: Job, report: ShrinkReport | None) -> ShrinkReport | None:
    with Replacement() as files:
        _write_report(job, report, files)
    return report


def _write_report(job: Job, report: ShrinkReport | None, files: Replacement) -> None:
    """Write the report, unless a run that was killed has left the same one."""
    if job.report is None or report is None:
        return
    make_folder(job.report)
    text = (report.to_json(factors=True) + "\n").encode()
    if job.report.is_file() and not job.force and job.report.read_bytes() != text:
        raise FileError(job.report, "exists; --force replaces it")
    files.open(job.report).write(text)


def _metadata(job: Job, edited: Edited) -> dict[str, str]:
    """Return what was done, for the file; an older entry would describe other weights."""
    report = edited.report
    settings = {} if report is None else {"method": report.method, **report.to_dict()["settings"]}
    return {"warmstart": json.dumps({**settings, **job.done})}


def _check_paths(job: Job) -> None:
    """Refuse outputs that would fall on each other, on an input, or on files that exist."""
    index = job.source.name.endswith(INDEX)
    outputs = [] if job.target is None else [job.target]
    if job.target is not None and index:
        if not job.target.name.endswith(INDEX):
            raise FileError(job.target, f"the output of an index must end in {INDEX}")
        if _same(job.target.parent, job.source.parent):
            raise FileError(job.target, "write a sharded checkpoint to another folder than IN's")
        outputs += [job.target.parent / s for s in read_index(job.source).shards]
    report = job.report
    for path in (job.source, *job.reads, *outputs):
        if report is not None and _same(path, report):
            raise FileError(report, f"the report would replace {path.name}; name another file")
    if job.force or (index and job.target is not None and unfinished(job.target)):
        return
    for path in outputs:
        if path.exists():
            raise FileError(path, "exists; --force replaces it")


def _same(one: Path, other: Path) -> bool:
    """Say whether two paths name one file, whatever they look like."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()
