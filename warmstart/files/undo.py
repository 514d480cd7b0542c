"""Undo a shrink by its report: only the one that it tells of, and only once."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specgd_common.tensors import norm64

from ..shrink.apply import products
from ..shrink.report import FORMAT, ShrinkReport
from ..targets.find import Target
from ..targets.state_targets import state_targets
from .read import FileError, read_json
from .state_dicts import StateDict, with_values


@dataclass(frozen=True)
class Told:
    """What a report tells of the tensors that were shrunk.

    Attributes:
        factors: By tensor name; empty where new values were written.
        norms: By tensor name, after the shrink.
        renewed: Whether running statistics were re-estimated as well.
    """

    factors: dict[str, Tensor]
    norms: dict[str, float]
    renewed: bool = False

    def of(self, names: Container[str]) -> Told:
        """Return what it tells of some of them, of one shard's say."""
        return Told({n: f for n, f in self.factors.items() if n in names}, self.norms)


def read_report(path: Path, *, factors: bool = True) -> tuple[dict[str, Any], Told]:
    """Read a report and what it tells; by one with factors a shrink can be undone.

    Raises:
        FileError: For other files, reports of dry runs, and reports that are damaged.
    """
    report = read_json(path)
    if report.get("format") != FORMAT:
        raise FileError(path, "is not a report of this program")
    try:
        return report, told_by(report, factors=factors)
    except ValueError as error:
        raise FileError(path, error) from None


def undo_state_dict(
    state_dict: Mapping[str, Any], report: ShrinkReport | Mapping[str, Any]
) -> StateDict:
    """Divide by the factors of a report: the old weights, rounded.

    Args:
        state_dict: What the report's shrink left.
        report: What the shrink returned, or its ``to_dict(factors=True)``, read from JSON say.

    Raises:
        ValueError: If the report is of a dry run or has no factors (noise and reinitialization
            cannot be undone), if they do not fit the tensors, or if a tensor's norm is not the one
            that the report has left: it is another file, or was undone already.
        KeyError: If a tensor is missing.

    Example:
        >>> import torch
        >>> from warmstart import undo_state_dict, uniform_state_dict
        >>> small, report = uniform_state_dict({"fc.weight": torch.ones(2, 2)}, 0.3)
        >>> undo_state_dict(small, report)["fc.weight"]
        tensor([[1., 1.],
                [1., 1.]])
    """
    plain = report.to_dict(factors=True) if isinstance(report, ShrinkReport) else report
    return undone(state_dict, told_by(plain))


def undone(state_dict: Mapping[str, Any], told: Told) -> StateDict:
    """Divide by factors; see ``undo_state_dict``."""
    missing = [n for n in told.factors if n not in state_dict]
    if missing:
        raise KeyError(f"no tensor named {missing[:5]} in the state dict")
    targets, _ = state_targets(state_dict, include=lambda name, x: name in told.factors)
    unfit = sorted(set(told.factors) - {n for t in targets for n in (t.name, *t.aliases)})
    if unfit:
        raise ValueError(f"the report's factors of {unfit[:5]} are of tensors that have none here")
    inverse = {t.name: 1.0 / _broadcast(told.factors[t.name], t) for t in targets}
    for t in targets:
        check_norm(t.name, t.parameter, told.norms[t.name])
    return with_values(state_dict, targets, products(targets, inverse))


def told_by(report: Mapping[str, Any], *, factors: bool = True) -> Told:
    """Return what a report tells.

    Args:
        report: As read from JSON.
        factors: Whether it must have them.

    Raises:
        ValueError: If it is of a dry run, or is none that a shrink has written whole.
    """
    if report.get("applied") is not True:
        raise ValueError("the report is of a dry run: nothing was changed that could be undone")
    packed = report.get("factors")
    settings = report.get("settings")
    renewed = isinstance(settings, Mapping) and bool(settings.get("recalibrate_norm"))
    if packed is None and not factors:
        return Told({}, _norms(report), renewed)
    if not isinstance(packed, Mapping) or not packed:
        raise ValueError(f"a {report.get('method')} report has no factors; it cannot be undone")
    unpacked = {}
    for name, p in packed.items():
        try:
            f = unpacked[name] = unpack(p)
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise ValueError(f"the report has damaged factors of {name!r} ({error})") from None
        if not bool(((f > 0) & (f <= 1)).all()):
            raise ValueError(f"the report has factors of {name!r} outside (0, 1]: no shrink does")
    norms = _norms(report)
    for name in unpacked:
        if name not in norms:
            raise ValueError(f"the report does not tell the norm of {name!r}")
    for names in _rows(report):
        if not set(names) & set(unpacked):
            raise ValueError(f"the report has lost its factors of {names[0]!r}")
    return Told(unpacked, norms, renewed)


def _rows(report: Mapping[str, Any]) -> dict[tuple[str, ...], object]:
    """Return all names of every changed tensor -> its norm, as far as a report tells them."""
    rows = report.get("parameters")
    out: dict[tuple[str, ...], object] = {}
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, Mapping):
            aliases = row.get("aliases")
            names = (row.get("name"), *(aliases if isinstance(aliases, (list, tuple)) else ()))
            texts = tuple(n for n in names if isinstance(n, str))
            if texts:
                out[texts] = row.get("norm_after")
    return out


def _norms(report: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(norm)
        for names, norm in _rows(report).items()
        if isinstance(norm, (int, float)) and math.isfinite(norm)
        for name in names
    }


def unpack(packed: Mapping[str, Any]) -> Tensor:
    """Return the tensor that ``pack`` was given.

    Raises:
        KeyError, TypeError, ValueError, zlib.error: If it is not what ``pack`` wrote.
    """
    shape, kind = packed["shape"], packed["dtype"]
    if kind not in ("<f4", "<f8"):
        raise ValueError(f"dtype must be '<f4' or '<f8', got {kind!r}")
    if any(type(n) is not int or n < 1 for n in shape):
        raise ValueError(f"shape must be a list of sizes, got {shape!r}")
    size = math.prod(shape) * int(kind[-1])
    # No more than the shape asks for: a few bytes can unpack to fill the memory.
    stream = zlib.decompressobj()
    raw = stream.decompress(base64.b64decode(packed["zlib+base64"], validate=True), size + 1)
    if len(raw) != size or not stream.eof:
        raise ValueError(f"{shape} values were announced, others are there")
    return torch.from_numpy(np.frombuffer(raw, kind).copy()).reshape(shape)


def _broadcast(f: Tensor, t: Target) -> Tensor:
    """Return factors that multiply a tensor as it is stored.

    Raises:
        ValueError: If they do not fit it.
    """
    shape = tuple(t.parameter.shape)
    if f.ndim == len(shape) + 1 and shape[0] % f.shape[0] == 0:
        # Filters of a grouped transposed convolution: one factor for each (group, output).
        f = f.expand(-1, shape[0] // f.shape[0], *f.shape[2:]).flatten(0, 1)
    fits = f.ndim == len(shape) and all(a in (1, b) for a, b in zip(f.shape, shape, strict=True))
    if not fits:
        raise ValueError(f"factors {tuple(f.shape)} do not fit {t.name!r} {shape}")
    return f


def check_norm(name: str, w: Tensor, told: float) -> None:
    """Hold a tensor against the norm that the report has left it with.

    Raises:
        ValueError: If it has another one.
    """
    norm = norm64(w)
    # Weights were rounded once after the norm was taken.
    slack = 2 * torch.finfo(w.dtype).eps * told + w.numel() ** 0.5 * torch.finfo(w.dtype).tiny
    if not abs(norm - told) <= slack + 1e-5 * told:
        raise ValueError(
            f"{name!r} has norm {norm:.6g}, but the report left it with {told:.6g}: this is not "
            "the file that it tells of, or it was undone already"
        )
