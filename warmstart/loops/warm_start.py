"""One object inside a training run: when the data set has grown, the model is shrunk, once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset

from specgd_common.files import write_text

from ..direction.undisturbed import Loss, default_loss
from ..methods.dash import dash_shrink
from ..methods.fire import fire_reinit
from ..methods.perturb import shrink_and_perturb
from ..methods.uniform import uniform_shrink
from ..shrink.optimizer_state import STATE_RULES
from ..shrink.report import ShrinkReport
from .growth import joined, parts_of, positions

METHODS: Mapping[str, Callable[..., ShrinkReport]] = {
    "dash": dash_shrink,
    "uniform": uniform_shrink,
    "shrink_and_perturb": shrink_and_perturb,
    "fire": fire_reinit,
}
# What WarmStart gives to a method itself.
_OWN = {
    "model", "data", "loss_fn", "forward", "optimizer", "optimizer_state", "inplace", "dry_run",
    "handover",
}  # fmt: skip


class WarmStart:
    """Shrink a model once whenever its training set has grown, inside your own training loop.

        grown by n examples, n >= min_growth * seen   ->   one shrink, one report, seen += n

    Its state belongs into the same checkpoint as the weights. A run that is killed after a shrink
    and before the next checkpoint comes back with the old weights and the old state, and shrinks
    again; one that is killed later comes back with both new, and does not. A report that was not
    written yet travels in the state and is written on return.

    Args:
        folder: Where reports go, ``warmstart-OLD-NEW.json`` with all factors, by which a shrink
            can be undone; None: the trainer's folder of checkpoints, and none in a plain loop.
        seen: What the model was trained on before it met this object: a number of examples or a
            manifest. None: the first data set that is met.
        manifest: ``manifest(dataset)`` -> its parts in the data set's order: ``{name: count}``, or
            one name for each example. None: the length alone; new examples are then at the end.
        method: ``"dash"``, ``"uniform"``, ``"shrink_and_perturb"`` or ``"fire"``.
        min_growth: Share of new among seen examples from which on a shrink is worth it, >= 0.
            Fewer wait, and count when more have arrived.
        optimizer_state: ``"reset"`` (default), ``"scale"`` or ``"keep"``, see ``dash_shrink``.
        loss_fn: ``loss_fn(output, target)``; not used for models that return a loss.
        forward: ``forward(model, batch) -> loss`` for batches or losses of any other kind. None
            under Lightning: the module's ``training_step``.
        batch_size: Of the measuring pass; None: the loader's.
        **options: Of the method, such as ``floor``, ``tail`` or ``recalibrate_norm``.

    Attributes:
        seen: Part -> number of examples that the model was trained on; None before the first call.
        report: Of the last shrink in this process, or None.

    Raises:
        ValueError: For an unknown method or rule, and values out of range.
        TypeError: For options that the method does not have.

    Example:
        >>> import torch
        >>> from warmstart import WarmStart
        >>> model = torch.nn.Linear(4, 2)
        >>> def loader(n):
        ...     x = torch.randn(n, 4)
        ...     data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
        ...     return torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
        >>> warm = WarmStart(seen=32)
        >>> report = warm.shrink_if_grown(model, loader(64))
        >>> report.num_batches, warm.shrink_if_grown(model, loader(64))
        (8, None)
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        seen: Any = None,
        manifest: Callable[[Any], Any] | None = None,
        method: str = "dash",
        min_growth: float = 0.01,
        optimizer_state: str = "reset",
        loss_fn: Loss = cross_entropy,
        forward: Callable[[nn.Module, Any], Tensor] | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {tuple(METHODS)}, got {method!r}")
        if not 0.0 <= min_growth < float("inf"):
            raise ValueError(f"min_growth must be finite and >= 0, got {min_growth}")
        if optimizer_state not in STATE_RULES:
            raise ValueError(
                f"optimizer_state must be one of {STATE_RULES}, got {optimizer_state!r}"
            )
        if optimizer_state == "scale" and method in ("shrink_and_perturb", "fire"):
            raise ValueError(
                f'{method} has no factors to scale by: optimizer_state "keep" or "reset"'
            )
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        # A misspelled option would come to light when data arrives, in the middle of a run.
        known = ({*inspect.signature(METHODS[method]).parameters} | {"along"}) - _OWN
        if unknown := sorted(set(options) - known):
            raise TypeError(f"{method} has no option {unknown[0]!r}; there are {sorted(known)}")
        self.folder = None if folder is None else Path(folder)
        self.seen = None if seen is None else parts_of(seen)
        self.manifest, self.method, self.min_growth = manifest, method, min_growth
        self.optimizer_state, self.loss_fn, self.forward = optimizer_state, loss_fn, forward
        self.batch_size, self.options = batch_size, options
        self.report: ShrinkReport | None = None
        # (file name, text) of a report that is not on the disk yet.
        self._pending: tuple[str, str] | None = None

    def shrink_if_grown(
        self, model: nn.Module, loader: Any, optimizer: Any = None
    ) -> ShrinkReport | None:
        """Shrink the model if the loader's data set has grown since the last call; else do nothing.

        Call it after the checkpoint was loaded, before the first epoch or before each. Every rank
        of a distributed run goes through the same examples, and gets the same factors.

        Args:
            model: What is trained; changed in place.
            loader: The training set's ``DataLoader``, shuffled or not: its examples are read
                through a loader of its own, oldest first, without touching this one.
            optimizer: Whose state is handed over by ``optimizer_state``.

        Returns:
            The report of a shrink, also in ``report`` and in the folder; None without one.

        Raises:
            TypeError: For a data set without length or positions.
            ValueError: Where the manifest counts other examples than there are, and what the
                method refuses. Nothing has changed then.
        """
        self._write_pending()
        dataset = _dataset(loader)
        now = parts_of(len(dataset) if self.manifest is None else self.manifest(dataset))
        if sum(now.values()) != len(dataset):
            raise ValueError(f"manifest counts {sum(now.values())} examples of {len(dataset)}")
        if self.seen is None or not any(self.seen.values()):  # nothing that was learned
            self.seen = now
            return None
        old, new = positions(self.seen, now)
        if not new or len(new) < self.min_growth * len(old):
            return None
        report = self._shrink(model, loader, dataset, old, new, optimizer)
        name = f"warmstart-{len(old)}-{len(old) + len(new)}.json"
        self._pending = name, report.to_json(factors=True) + "\n"
        self.seen, self.report = joined(self.seen, now), report
        self._write_pending()
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return what must be saved with the weights: plain data, also for JSON."""
        pending = None if self._pending is None else list(self._pending)
        return {"seen": None if self.seen is None else dict(self.seen), "report": pending}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up a saved state.

        Raises:
            ValueError: If it is none; nothing has changed then.
        """
        if not isinstance(state_dict, Mapping) or set(state_dict) != {"seen", "report"}:
            raise ValueError(f"state must be a WarmStart's, got {state_dict!r:.80}")
        seen, pending = state_dict["seen"], state_dict["report"]
        if pending is not None and not (
            len(pending) == 2 and all(isinstance(x, str) for x in pending)
        ):
            raise ValueError(f"the state's report must be a name and a text, got {pending!r:.80}")
        self.seen = None if seen is None else parts_of(seen)
        self._pending = None if pending is None else (pending[0], pending[1])

    def lightning_callback(self) -> Any:
        """Return the callback for ``lightning.Trainer(callbacks=[...])``."""
        from .callbacks import lightning_callback

        return lightning_callback(self)

    def hf_callback(self) -> Any:
        """Return the callback for ``transformers.Trainer(callbacks=[...])``."""
        from .callbacks import hf_callback

        return hf_callback(self)

    def _shrink(
        self,
        model: nn.Module,
        loader: Any,
        dataset: Dataset[Any],
        old: list[int],
        new: list[int],
        optimizer: Any,
    ) -> ShrinkReport:
        options = dict(self.options)
        if optimizer is not None:
            options.update(optimizer=optimizer, optimizer_state=self.optimizer_state)
        notes = [f"the data set has grown from {len(old):,} to {len(old) + len(new):,} examples"]
        if self.method != "dash":
            report = METHODS[self.method](model, **options)
        else:
            size = self.batch_size or _batch_size(loader)
            batches = _Batches(*(_read(loader, dataset, part, size) for part in (old, new)))
            run = self.forward or (lambda m, batch: default_loss(m, batch, self.loss_fn))
            losses: list[float] = []

            def forward(m: nn.Module, batch: Any) -> Tensor:
                loss = run(m, batch)
                losses.append(float(loss.detach()))
                return loss

            report = dash_shrink(model, batches, forward=forward, **options)
            left = len(batches) - report.num_batches if "tail" in options else 0
            notes += _told(losses[: report.num_batches], len(batches.old) - left)
        report.notes += notes
        return report

    def _write_pending(self) -> None:
        """Put a report that is not on the disk yet there, from one rank."""
        if self._pending is None or self.folder is None:
            return
        name, text = self._pending
        there = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not there or torch.distributed.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / name, text)
        self._pending = None


class _Batches:
    """Batches of old examples, then of new ones; none has both."""

    def __init__(self, old: DataLoader[Any], new: DataLoader[Any]) -> None:
        self.old, self.new = old, new

    def __len__(self) -> int:
        return len(self.old) + len(self.new)

    def __iter__(self) -> Any:
        yield from self.old
        yield from self.new


def _told(losses: list[float], old: int) -> list[str]:
    """Say how the model did before the shrink on what it knew and on what is new to it."""
    parts = {"old": losses[: max(old, 0)], "new": losses[max(old, 0) :]}
    told = [f"{fmean(x):.4g} on {n} data ({len(x)} batches)" for n, x in parts.items() if x]
    return [f"mean loss before the shrink: {', '.join(told)}"]


def _dataset(loader: Any) -> Any:
    dataset = getattr(loader, "dataset", None)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            "WarmStart needs a DataLoader whose data set has a length and positions, got "
            f"{type(loader).__name__} of {type(dataset).__name__}"
        )
    return dataset


def _batch_size(loader: Any) -> int:
    size = getattr(loader, "batch_size", None)
    size = size or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if not size:
        raise ValueError("the loader does not tell its batch size: WarmStart(batch_size=...)")
    return int(size)


def _read(loader: Any, dataset: Any, part: list[int], size: int) -> DataLoader[Any]:
    """Return a loader of some examples in their order, collated as the user's loader does."""
    collate = getattr(loader, "collate_fn", None)
    return DataLoader(Subset(dataset, part), batch_size=size, collate_fn=collate)
