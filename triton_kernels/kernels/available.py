"""Whether Triton's kernels run on a GPU, and compute what they should there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ..schedule.named import SCHEDULES
from .configuration import architecture, has_table
from .owned import capturing

OLDEST = (3, 5)  # the first version of Triton that these kernels were compiled with


def triton_runs(device: torch.device) -> bool:
    """Say whether Triton is installed, new enough, and knows a GPU; asked once.

    Args:
        device: A GPU.
    """
    return _reason(architecture(device)) is None


def trusted(device: torch.device, configs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Say whether kernels compile for a GPU and one launch of each is right; asked once.

    Some versions of the compilers make wrong code for some tiles. Where no values can be looked at,
    under the capture of a CUDA graph and for tensors without data, the answer is yes.

    Args:
        device: A GPU.
        configs: By kernel, see `Plan.configs`.
    """
    if not triton_runs(device):
        return False
    if not torch.cuda.is_available() or capturing(device):
        return True
    index = torch.cuda.current_device() if device.index is None else device.index
    return all(_checked(kind, tuple(c.items()), index) for kind, c in configs.items())


@lru_cache(maxsize=16)
def _reason(arch: str) -> str | None:
    """Return why kernels do not run, or None; warns with it."""
    reason, version = None, _version()
    if version is None:
        reason = "Triton is not installed"
    elif tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        reason = f"Triton must be at least {OLDEST[0]}.{OLDEST[1]}, got {version}"
    elif not has_table(arch):
        reason = f"there are no kernels for {arch}"
    if reason is not None:
        _warn(reason)
    return reason


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Make a GPU the current one: Triton launches there, wherever the tensors are.

    Args:
        device: Of the tensors; nothing is done for a CPU.
    """
    if device.type != "cuda":
        yield
        return
    guard = torch.cuda.device(device)
    try:
        guard.__enter__()
    except (RuntimeError, TypeError):
        if torch.cuda.is_available():
            raise
        # Without a GPU there is no device to switch to: these are tensors without data.
        yield
        return
    try:
        yield
    finally:
        guard.__exit__(None, None, None)


def forget() -> None:
    """Ask and check anew from now on."""
    _reason.cache_clear()
    _checked.cache_clear()


def _version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def _warn(reason: str) -> None:
    warnings.warn(
        f"{reason}: the engine multiplies through the vendor's library instead", stacklevel=3
    )


@lru_cache(maxsize=64)
def _checked(kind: str, config: tuple[tuple[str, Any], ...], index: int) -> bool:
    """Compare one launch with float64; warn and return False where they differ, or it fails."""
    device = torch.device("cuda", index)
    try:
        with on_device(device):
            error = CHECKS[kind](dict(config), device)
    except Exception as failure:  # compilers and drivers raise errors of many kinds
        _warn(f"the {kind} kernel failed on its first launch ({type(failure).__name__}: {failure})")
        return False
    if not error < 2**-6:
        _warn(f"the {kind} kernel was off by {error:.3g} on its first launch")
        return False
    return True


def _numbers(device: torch.device, *shape: int) -> Tensor:
    """Return entries of about one, from no generator: what is drawn next must not change."""
    count = torch.Size(shape).numel()
    values = torch.arange(1.0, count + 1, dtype=torch.float64, device="cpu").mul(1.7).square().sin()
    return values.view(shape).to(device)


def _product_error(kind: str, config: dict[str, Any], device: torch.device) -> float:
    from .launch import apply, symmetric

    n, m = 2 * config["BLOCK_M"], 2 * config["BLOCK_N"]
    x = _numbers(device, 2, n, m).to(torch.bfloat16)
    q = _numbers(device, 2, n, n).to(torch.bfloat16)
    if kind == "symmetric":
        found, truth = symmetric(x, x, config=config), x.double() @ x.double().mT
    else:
        found, truth = apply(q, x, config=config), q.double() @ x.double()
    return float((found.double() - truth).abs().max() / truth.abs().max())


def _small_error(kind: str, config: dict[str, Any], device: torch.device) -> float:
    from .launch_small import orthogonalize_small

    x, schedule = _numbers(device, 3, config["N"], 3 * config["BLOCK"]), SCHEDULES["deep"]
    columns = config["BLOCK"] if kind == "long" else 4 * config["BLOCK"]
    found = orthogonalize_small(x.float(), schedule, config=config, columns=columns).double()
    u, s, vh = torch.linalg.svd(x.cpu(), full_matrices=False)
    mapped = torch.from_numpy(schedule((s / (s**4).sum(-1, keepdim=True) ** 0.25).numpy()))
    return float((found.cpu() - (u * mapped[:, None, :]) @ vh).abs().max())


def _elementwise_error(config: dict[str, Any], device: torch.device) -> float:
    from .elementwise import momentum, update

    shapes = ((16, 48), (5, 7))  # one that fills whole lines, and one that does not
    dtype = config.get("dtype", torch.float32)  # of weights and state, each its own kernel
    # Results stay below one, where bfloat16 rounds by 2^-9, or cuts off by 2^-8.
    some = ([_numbers(device, *s).add(k).div(4).to(dtype) for s in shapes] for k in range(4))
    g, b, w, out = some
    g64, b64, w64 = ([x.double() for x in some] for some in (g, b, w))
    momentum(g, b, out, 0.75)
    update(w, g, (0.5, 2.0), 0.25, 0.5)
    b64 = [torch.lerp(y, x, 0.25) for x, y in zip(g64, b64, strict=True)]
    ahead = [torch.lerp(x, y, 0.75) for x, y in zip(g64, b64, strict=True)]
    w64 = [0.875 * x - 0.25 * s * y for x, y, s in zip(w64, g64, (0.5, 2.0), strict=True)]
    pairs = zip((*b, *out, *w), (*b64, *ahead, *w64), strict=True)
    return max(float((x.double() - y).abs().max()) for x, y in pairs)


CHECKS: dict[str, Callable[[dict[str, Any], torch.device], float]] = {
    "symmetric": partial(_product_error, "symmetric"),
    "apply": partial(_product_error, "apply"),
    "small": partial(_small_error, "small"),
    "long": partial(_small_error, "long"),
    "elementwise": _elementwise_error,
}
