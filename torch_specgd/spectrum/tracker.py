"""Singular values over training, step by step: a tracker for any loop."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from specgd_common.files import replacing
from specgd_common.optional import needed

from ..groups.lora import LoraPair, find_lora_pairs
from ..groups.matrix_view import as_matrices
from ..telemetry import sender
from .lora_report import lora_report
from .measures import (
    effective_rank,
    lora_balance,
    lora_singular_values,
    mode_projections,
    stable_rank,
    triangle,
    wide,
)
from .records import checked_records, scalars

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes


class SpectrumTracker:
    """Records singular values of weights and LoRA products every few steps.

    Each record holds, per matrix: the singular values, stable rank, effective rank,
    sigma_r / sigma_1, for LoRA products the balance of the factors, with a known target the
    mode projections d_i = u_i^T W v_i, and with an optimizer the learning rate and the rate at
    which sqrt(sigma) can grow.

    Args:
        model: The module to watch, or None if ``pairs`` are given.
        every: Steps between records (default 100).
        weights: Patterns of weight names whose dense singular values are recorded ("*.mlp.*");
            default: every matrix if the model has no adapters, else none (a dense decomposition
            of 2048 x 2048 takes seconds).
        pairs: LoRA pairs by hand (default: found in the model by name).
        targets: Known targets Y by the weight's or pair's name, (m, n).
        optimizer: Whose learning rates are recorded; a spectral one for predicted hit times.
        log: Where each record's ranks, largest and smallest singular value, balance and rate are
            sent, under "spectrum/NAME/": TensorBoard's ``SummaryWriter``, ``wandb`` or one of its
            runs, ``mlflow``, a logger of Lightning, an ``Accelerator``, or a function of
            (dict, step).

    Raises:
        ValueError: If there is nothing to record, a pattern or target fits nothing, or every < 1.
        TypeError: If ``log`` is nothing of that kind.

    Example:
        >>> model = nn.Linear(4, 3, bias=False)
        >>> tracker = SpectrumTracker(model, every=10)
        >>> for step in range(21):
        ...     tracker.update(step)
        >>> steps, sigma = tracker.history("weight")
        >>> steps.tolist(), tuple(sigma.shape)
        ([0, 10, 20], (3, 3))
    """

    def __init__(
        self,
        model: nn.Module | None,
        every: int = 100,
        *,
        weights: Sequence[str] | None = None,
        pairs: Iterable[LoraPair] | None = None,
        targets: Mapping[str, Tensor] | None = None,
        optimizer: Optimizer | None = None,
        log: Any = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every = every
        self.optimizer = optimizer
        self._send = sender(log)
        found = find_lora_pairs(model) if pairs is None and model is not None else (pairs or ())
        self.pairs = {pair.name: pair for pair in found}
        self.weights = _choose_weights(model, weights, bool(self.pairs))
        self.targets = dict(targets or {})
        self.records: list[dict[str, Any]] = []
        self._next_step = 0
        if not self.pairs and not self.weights:
            raise ValueError("nothing to record: the model has neither matrices nor LoRA factors")
        for name in self.targets:
            if name not in self.pairs and name not in self.weights:
                raise ValueError(
                    f"target {name!r} belongs to nothing recorded: "
                    f"{[*self.pairs, *self.weights][:20]}"
                )
        self._left, self._right = self._target_bases()

    def _target_bases(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the targets' singular vectors, as many as the watched matrix has rank for."""
        left, right = {}, {}
        for name, target in self.targets.items():
            u, _, vh = torch.linalg.svd(wide(target.detach()), full_matrices=False)
            modes = min(self.pairs[name].rank if name in self.pairs else len(vh), len(vh))
            left[name], right[name] = u[:, :modes], vh[:modes]
        return left, right

    def update(self, step: int | None = None) -> None:
        """Call once after every optimizer step; records if the step is a multiple of ``every``.

        Args:
            step: The step's number; None counts the calls, from 0.
        """
        step = self._next_step if step is None else step
        self._next_step = step + 1
        if step % self.every == 0:
            self.record(step)

    @torch.no_grad()
    def record(self, step: int) -> None:
        """Record now, whatever ``every`` says; once per step.

        Args:
            step: The step's number.
        """
        if self.records and self.records[-1]["step"] == step:
            return
        known, rates = len(self.records), self._rates()
        for batch in _by_shape(self.pairs.values()):
            b = torch.stack([_local(p.lora_b).flatten(1) for p in batch])
            a = torch.stack([_local(p.lora_a).flatten(1) for p in batch])
            # Everything below depends on the factors through their triangles alone.
            r_b, r_a = triangle(b), triangle(a.mT).mT
            sigma = lora_singular_values(r_b, r_a).cpu()
            balance = lora_balance(r_b, r_a).cpu()
            for i, pair in enumerate(batch):
                modes = self._modes(pair.name, pair.scale * wide(b[i]), wide(a[i]))
                self._append(
                    step, pair.name, "lora", abs(pair.scale) * sigma[i], rates.get(pair.name),
                    balance=float(balance[i]), scale=pair.scale, modes=modes,
                )  # fmt: skip
        for name, weight in self.weights.items():
            matrix = wide(as_matrices(_local(weight), "auto"))
            for i, x in enumerate(matrix):
                label = name if len(matrix) == 1 else f"{name}[{i}]"
                modes = self._modes(name, x, torch.eye(x.shape[1], dtype=x.dtype, device=x.device))
                self._append(
                    step, label, "weight", torch.linalg.svdvals(x).cpu(), rates.get(name),
                    modes=modes,
                )  # fmt: skip
        self._send(scalars(self.records[known:]), step)

    def _modes(self, name: str, left: Tensor, right: Tensor) -> list[float] | None:
        if name not in self.targets:
            return None
        u, vh = (x[name].to(left) for x in (self._left, self._right))
        return mode_projections(left, right, u, vh).tolist()

    def _append(
        self, step: int, name: str, kind: str, sigma: Tensor, rate: float | None, **more: Any
    ) -> None:
        values = sigma.double()
        self.records.append(
            {
                "step": step,
                "name": name,
                "kind": kind,
                "singular_values": values.tolist(),
                "stable_rank": float(stable_rank(values, is_spectrum=True)),
                "effective_rank": float(effective_rank(values, is_spectrum=True)),
                "sigma_ratio": float(values[-1] / values[0]) if values[0] > 0 else 0.0,
                "balance": more.get("balance"),
                "scale": more.get("scale", 1.0),
                "rate": rate,
                "modes": more.get("modes"),
            }
        )

    def _rates(self) -> dict[str, float]:
        """Return, per name, the growth of sqrt(sigma) (pairs) or of sigma (weights) per step."""
        if self.optimizer is None:
            return {}
        groups = self.optimizer.param_groups
        rates = {}
        if all("adjust_lr_fn" in group for group in groups) and self.pairs:
            report = lora_report(self.pairs.values(), self.optimizer)
            rates = {x.name: x.effective_rate for x in report}
        held = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
        weights = {name: held[id(w)] for name, w in self.weights.items() if id(w) in held}
        return {**rates, **weights}

    def names(self) -> list[str]:
        """Return the names of everything recorded so far, in order of first appearance."""
        return list(dict.fromkeys(record["name"] for record in self.records))

    def history(self, name: str, key: str = "singular_values") -> tuple[Tensor, Tensor]:
        """Return one quantity of one matrix over the steps.

        Args:
            name: A name out of :meth:`names`.
            key: "singular_values", "modes", "stable_rank", "effective_rank", "sigma_ratio",
                "balance" or "rate".

        Returns:
            Steps (K,) int64 and values (K,) or (K, r), float64.

        Raises:
            ValueError: If nothing of that name was recorded, or it has no such quantity.
        """
        records = [r for r in self.records if r["name"] == name]
        if not records:
            raise ValueError(f"nothing recorded under {name!r}; recorded are {self.names()}")
        if key not in records[0] or any(r[key] is None for r in records):
            raise ValueError(
                f"{name!r} has no {key!r}: it needs a target, a LoRA pair or an optimizer"
            )
        steps = torch.tensor([r["step"] for r in records])
        return steps, torch.tensor([r[key] for r in records], dtype=torch.float64)

    def predicted_hits(self, name: str) -> Tensor:
        """Return the steps at which theory lets each mode of a LoRA pair reach its target.

        The recorded rate sqrt(c lr_a lr_b) is summed over the steps until it reaches
        sqrt(sigma_i); where the records end, the last rate is continued.

        Args:
            name: A pair with a target, recorded with a spectral optimizer.

        Returns:
            (modes,), float64, one step number for each of the target's largest modes.

        Raises:
            ValueError: If the name has no target or no recorded rate.
        """
        if name not in self.targets or name not in self.pairs:
            raise ValueError(f"{name!r} is no LoRA pair with a known target")
        steps, rate = self.history(name, "rate")
        sigma = torch.linalg.svdvals(self.targets[name].double()).cpu()
        need = sigma[: self.pairs[name].rank].sqrt()
        travelled = torch.cat([torch.zeros(1).double(), (rate[:-1] * steps.diff()).cumsum(0)])
        last = (torch.searchsorted(travelled, need, right=True) - 1).clamp(max=len(steps) - 1)
        return steps[last] + (need - travelled[last]) / rate[last]

    def table(self) -> "pa.Table":
        """Return all records as an Arrow table, one row per singular value.

        Returns:
            Columns step, name, kind, index, singular_value, mode, stable_rank, effective_rank,
            sigma_ratio, balance, scale, rate; what does not apply is null.
        """
        from .table import spectrum_table

        return spectrum_table(self.records)

    def to_csv(self, path: str | Path) -> None:
        """Write :meth:`table` as CSV; an old file is replaced when the new one is whole."""
        write_csv = needed("pyarrow.csv", "data").write_csv
        with replacing(path) as file:
            write_csv(self.table(), file)

    def to_parquet(self, path: str | Path) -> None:
        """Write :meth:`table` as Parquet; an old file is replaced when the new one is whole."""
        write_table = needed("pyarrow.parquet", "data").write_table
        with replacing(path) as file:
            write_table(self.table(), file)

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded so far, for a checkpoint."""
        return {"records": [dict(record) for record in self.records], "next_step": self._next_step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; replaces what was recorded.

        Raises:
            ValueError: If a key is missing or unknown or a value cannot be one; nothing has
                changed then.
        """
        records = checked_records(state_dict)
        self.records, self._next_step = records, state_dict["next_step"]

    def plot(self, name: str | None = None, ax: "Axes | None" = None) -> "Axes":
        """Draw sqrt(singular values) over steps: of one matrix each, of many median and range.

        One matrix with a target shows sqrt(d_i) and predicted hits. Many show the growth of their
        largest, middle and smallest singular value, and below it the spread within each matrix,
        sigma_r / sigma_1.

        Args:
            name: A recorded name, or a pattern of several ("*q_proj*"); default: every adapter,
                or every weight if there are no adapters.
            ax: Axes to draw into, of many the growth alone (default: a new figure).

        Returns:
            The axes, of two panels the upper one; ``plot().figure.savefig(path)`` writes a file.
            Needs matplotlib (the extra "plot").

        Raises:
            ValueError: If nothing was recorded, or nothing of that name.
        """
        from .plot import plot_spectrum

        return plot_spectrum(self, name, ax)

    def hf_callback(self) -> Any:
        """Return a ``transformers.TrainerCallback`` that updates this tracker."""
        from .callbacks import hf_callback

        return hf_callback(self)

    def lightning_callback(self) -> Any:
        """Return a ``lightning.pytorch.Callback`` that updates and checkpoints this tracker."""
        from .callbacks import lightning_callback

        return lightning_callback(self)


def _choose_weights(
    model: nn.Module | None, patterns: Sequence[str] | None, has_pairs: bool
) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {} if model is None else dict(model.named_parameters())
    matrices = {name: p for name, p in named.items() if p.ndim >= 2}
    if patterns is None:
        return {} if has_pairs else matrices
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in matrices):
            raise ValueError(
                f"no matrix is named like {pattern!r}; there are {list(matrices)[:20]}"
            )
    return {n: p for n, p in matrices.items() if any(fnmatchcase(n, x) for x in patterns)}


def _by_shape(pairs: Iterable[LoraPair]) -> list[list[LoraPair]]:
    batches: dict[tuple[Any, ...], list[LoraPair]] = {}
    for p in pairs:
        key = (p.lora_b.shape, p.lora_a.shape, p.lora_a.dtype, p.lora_a.device)
        batches.setdefault(key, []).append(p)
    return list(batches.values())


def _local(x: Tensor) -> Tensor:
    # Sharded weights (DTensor) are gathered: every rank then records the same.
    gather = getattr(x.detach(), "full_tensor", None)
    return x.detach() if gather is None else gather()
