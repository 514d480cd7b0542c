"""What a step did to the weights, measured where it was asked for, and where numbers are sent."""

from collections.abc import Callable
from math import sqrt
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from specgd_common.tensors import is_dtensor, local

from .triton_kernels.kernels.owned import capturing

Send = Callable[[dict[str, float], int], object]


def sender(log: Any) -> Send:
    """Return what sends a dict of numbers and a step to a logger, whichever it is.

    Args:
        log: A TensorBoard ``SummaryWriter`` (``add_scalar``); the module ``mlflow`` or a logger of
            Lightning (``log_metrics``); ``wandb``, one of its runs or an ``Accelerator`` (``log``);
            a function of (dict, step); or None: nowhere.

    Raises:
        TypeError: For anything else.

    Example:
        >>> sender(lambda numbers, step: print(step, numbers))({"loss": 0.5}, 3)
        3 {'loss': 0.5}
    """
    if log is None:
        return lambda numbers, step: None
    if callable(getattr(log, "log_metrics", None)):
        return lambda numbers, step: log.log_metrics(numbers, step=step)
    if callable(getattr(log, "add_scalar", None)):
        return lambda numbers, step: [log.add_scalar(k, x, step) for k, x in numbers.items()]
    if callable(getattr(log, "log", None)):
        return lambda numbers, step: log.log(numbers, step=step)
    if not callable(log):
        raise TypeError(
            "log must be a SummaryWriter, wandb or a run of it, mlflow, a logger with log_metrics "
            f"or log, or a function of (dict, step), got {log!r:.80}"
        )
    return log


class Clock:
    """Adds up the milliseconds from an odd call to the even one after it."""

    def __init__(self) -> None:
        self.ms = 0.0
        self._started: float | None = None

    def __call__(self, device: torch.device) -> None:
        """Start, or stop; what runs on the device has ended then."""
        if device.type != "cpu":
            torch.get_device_module(device).synchronize(device)
        now = perf_counter()
        if self._started is None:
            self._started = now
        else:
            self.ms += 1e3 * (now - self._started)
            self._started = None


class StepStatistics(dict[str, float]):
    """The numbers of an optimizer's last measured step; empty before the first.

    D is what the step added to the weights W, weight decay included:

    | key | meaning |
    |---|---|
    | "update_norm" | norm of D over all parameters |
    | "update_rms/0", ... | root mean square of D's entries, by group |
    | "cosine", "cosine/0", ... | of D and W before the step, over all and by group |
    | "share/orthogonalized", "share/adamw", ... | part of D's squared norm; they add up to 1 |
    | "orthogonalize_ms" | of orthogonalization, with ranks' exchanges; 0 in a compiled step |

    Made by ``optimizer.statistics()``. A ``with`` block, or ``stop()``, ends the measuring.
    """

    def __init__(self, optimizer: Any, every: int, log: Any, next_step: int) -> None:
        super().__init__()
        self.every = every
        self._send = sender(log)
        self._next_step = next_step
        self._before: list[list[Tensor | None]] | None = None
        # A compiled step calls them between its graphs.
        hooks = [torch.compiler.disable(hook) for hook in (self._remember, self._compare)]
        self._hooks = (
            optimizer.register_step_pre_hook(hooks[0]),
            optimizer.register_step_post_hook(hooks[1]),
        )

    def stop(self) -> None:
        """Measure no further step; the last one's numbers stay."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> "StepStatistics":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @torch.no_grad()
    def _remember(self, optimizer: Any, *_: Any) -> None:
        self._before = None
        if self._next_step % self.every == 0 and not capturing(_device(optimizer)):
            optimizer._clock = Clock()
            self._before = [
                # A closure may give gradients only later.
                [p.detach().clone() if p.requires_grad else None for p in group["params"]]
                for group in optimizer.param_groups
            ]

    @torch.no_grad()
    def _compare(self, optimizer: Any, *_: Any) -> None:
        step, self._next_step = self._next_step, self._next_step + 1
        if self._before is None:
            return
        sums = _Sums()
        for i, (group, olds) in enumerate(zip(optimizer.param_groups, self._before, strict=True)):
            for p, old in zip(group["params"], olds, strict=True):
                if old is not None and p.numel():
                    sums.add((i, optimizer._algorithm(p, group)), p.detach(), old)
        numbers = _numbers(sums)
        numbers["orthogonalize_ms"] = optimizer._clock.ms
        optimizer._clock = self._before = None
        self.clear()
        self.update(numbers)
        self._send({f"optimizer/{key}": x for key, x in numbers.items()}, step)


def _device(optimizer: Any) -> torch.device:
    return next(
        (p.device for g in optimizer.param_groups for p in g["params"]), torch.device("cpu")
    )


class _Sums:
    """D.D, D.W, W.W and the entries' number by kind of parameter, over all ranks' pieces."""

    def __init__(self) -> None:
        # By where the parameters lie; on a GPU nothing is waited for until all are there.
        self._found: dict[Any, dict[Any, list[Tensor]]] = {}
        self._entries: dict[Any, int] = {}

    def add(self, kind: Any, new: Tensor, old: Tensor) -> None:
        place = (new.device_mesh, tuple(new.placements)) if is_dtensor(new) else new.device
        self._entries[kind] = self._entries.get(kind, 0) + new.numel()
        wide = torch.promote_types(new.dtype, torch.float32)
        w = local(old).to(wide)
        d = local(new).to(wide) - w
        sums = torch.stack([(d * d).sum(), (d * w).sum(), (w * w).sum()])
        self._found.setdefault(place, {}).setdefault(kind, []).append(sums)

    def totals(self) -> dict[Any, Tensor]:
        """Return (D.D, D.W, W.W, entries) of each kind, float64; one exchange for each layout."""
        result = {
            kind: torch.tensor([0.0, 0.0, 0.0, n], dtype=torch.float64)
            for kind, n in self._entries.items()
        }
        for place, by_kind in self._found.items():
            rows = torch.stack([torch.stack(xs).cpu().double().sum(0) for xs in by_kind.values()])
            for kind, row in zip(by_kind, _over_ranks(rows, place), strict=True):
                result[kind][:3] += row
        return result


def _over_ranks(x: Tensor, place: Any) -> Tensor:
    """Add up what each rank found in its pieces; replicas count once."""
    if isinstance(place, torch.device):
        return x
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = place
    kinds = [Replicate() if p.is_replicate() else Partial() for p in placements]
    return DTensor.from_local(x.to(mesh.device_type), mesh, kinds).full_tensor().cpu()


def _numbers(sums: _Sums) -> dict[str, float]:
    """Return the statistics by name."""
    groups: dict[int, Tensor] = {}
    algorithms: dict[str, Tensor] = {}
    total = torch.zeros(4, dtype=torch.float64)
    for (i, algorithm), x in sums.totals().items():
        groups[i] = groups.get(i, 0) + x
        algorithms[algorithm] = algorithms.get(algorithm, 0) + x
        total = total + x
    squared = float(total[0])
    numbers = {"update_norm": sqrt(squared), "cosine": _cosine(total)}
    for i, x in groups.items():
        numbers[f"update_rms/{i}"] = sqrt(float(x[0] / x[3]))
        numbers[f"cosine/{i}"] = _cosine(x)
    for name, x in algorithms.items():
        numbers[f"share/{name}"] = float(x[0]) / squared if squared else 0.0
    return numbers


def _cosine(x: Tensor) -> float:
    norms = sqrt(float(x[0])) * sqrt(float(x[2]))
    return float(x[1]) / norms if norms else 0.0
