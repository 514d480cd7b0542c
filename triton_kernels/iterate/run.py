"""Running what is asked for on a batch: which products multiply, and in which memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..kernels.available import on_device, triton_runs, trusted
from ..kernels.configuration import (
    PROGRAM_COLUMNS,
    architecture,
    has_table,
    load_table,
    small_config,
    tables_of,
    worth_tiles,
)
from ..kernels.owned import capturing
from ..planning.choose import SMALL, planned
from ..planning.plan import Plan, Request
from ..schedule.named import Schedule
from .exact import precise, smoothed_polar, svd_polar, torch_muon
from .iteration import carried_polynomial, direct, gram
from .normalize import begin, first_bound, in_range, normalize_gram, rescaled
from .products import Products, TorchProducts, cpu_has_amx, scale_members

_FORMS = {"newton_schulz": "direct", "gram": "gram"}
_CHUNK = 2**21  # elements worked on at a time on a CPU
_WORKSPACE = 2**26  # elements at most where every thread has its own matrix
_RING = 4  # n x n results of the direct form that exist at one time, at most
_LIMIT = 1 << 26  # bytes; where more is needed, products take far longer than page faults

_BACKENDS: Any = torch.backends  # its stubs lack mkldnn.matmul and fp32_precision
_LOCK = threading.Lock()
_INSIDE: dict[str, tuple[int, str]] = {}  # contexts by backend, and what was allowed before them


@contextmanager
def as_written(device: torch.device) -> Iterator[None]:
    """Run operations on a device with the dtypes that they are given.

    Autocast is set aside, and float32 products are computed in float32: TF32 and bfloat16 suit a
    model's layers, but a Gram matrix that is rounded to bfloat16 gets negative eigenvalues, and a
    step of degree 9 sends one to 200. A GPU becomes the current one, where Triton launches.

    Args:
        device: Of the tensors.
    """
    cast = device.type != "meta" and torch.is_autocast_enabled(device.type)
    gpu = device.type == "cuda"
    kind = "cuda" if gpu else "mkldnn"
    backend = getattr(_BACKENDS, kind).matmul
    with (
        torch.autocast(device.type, enabled=False) if cast else nullcontext(),
        on_device(device) if gpu else nullcontext(),
    ):
        # The setting is the process's: the first context of all threads notes it.
        with _LOCK:
            count, before = _INSIDE.get(kind, (0, ""))
            if count == 0:
                before = backend.fp32_precision
                if before == _BACKENDS.fp32_precision:
                    before = "none"  # what follows the setting of all backends goes on to follow it
                backend.fp32_precision = "ieee"
            _INSIDE[kind] = count + 1, before
        try:
            yield
        finally:
            with _LOCK:
                count, before = _INSIDE[kind]
                if count == 1:
                    backend.fp32_precision = before
                _INSIDE[kind] = count - 1, before


class KeptMemory(threading.local):
    """CPU memory that a thread uses again instead of giving it back to the system.

    The first touch of fresh memory is a page fault every 4 KiB, which together cost more than a
    pass over it, and the allocator returns blocks of some megabytes as soon as they are free. So
    each thread keeps one piece of at most 64 MiB; whoever takes it has it alone.

    Example:
        >>> kept = KeptMemory()
        >>> room = kept.take(100)
        >>> kept.give(room)
        True
        >>> kept.take(50).data_ptr() == room.data_ptr()
        True
    """

    def __init__(self) -> None:
        # Kept as a storage: a tensor made in inference mode could not be written outside of it.
        self._room: torch.UntypedStorage | None = None

    def take(self, nbytes: int) -> Tensor:
        """Return at least so many bytes, uninitialized: the kept ones if they suffice.

        Args:
            nbytes: How many.
        """
        # The device is named because the caller's default may be another.
        memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        if type(memory) is not Tensor:
            # Under FakeTensorMode new tensors have no data; the kept memory stays for others.
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu")
        room, self._room = self._room, None
        if room is None or room.nbytes() < nbytes:
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu")
        return memory.set_(room)

    def give(self, memory: Tensor) -> bool:
        """Keep the whole storage of a tensor for the next taker, unless it is large.

        Args:
            memory: On a CPU; what still refers to it will be written over.

        Returns:
            Whether it is kept.
        """
        storage = memory.untyped_storage()
        # The storage of a fake tensor is on "meta", whatever device the tensor names.
        kept = storage.device.type == "cpu" and storage.nbytes() <= _LIMIT
        if kept:
            self._room = storage
        return kept


_KEPT = KeptMemory()  # the last call's buffers


def run(x: Tensor, out: Tensor, request: Request) -> None:
    """Write to `out` what is asked for.

    Args:
        x: (..., m, n).
        out: Of x's shape, dtype and device, with leading dimensions that can be viewed as one. It
            may be x itself.
        request: What to do.
    """
    if x.numel() == 0:
        return
    batch, place = x.reshape(-1, *x.shape[-2:]), out.view(-1, *out.shape[-2:])
    method, steps, dtype = request.method, request.schedule, request.dtype
    wide = torch.promote_types(dtype or x.dtype, torch.float32)
    with as_written(x.device):
        if method in ("svd", "smoothed") and capturing(x.device):
            raise RuntimeError(
                f"method must be one of products while a CUDA graph is captured, got {method!r}: "
                f"the host waits for a decomposition; 'precise' comes close to it"
            )
        if method == "svd":
            place.copy_(svd_polar(batch.to(wide), request.tolerance))
            return
        if method == "smoothed":
            place.copy_(smoothed_polar(batch.to(wide), request.smoothing))
            return
        if x.shape[-2] > x.shape[-1]:
            batch, place = batch.mT, place.mT
        if method == "precise":
            place.copy_(precise(batch, wide))
        elif method == "torch_muon":
            assert steps is not None
            place.copy_(torch_muon(batch, steps, request.eps, dtype or torch.bfloat16))
        else:
            size, n, m = batch.shape
            own = wide if dtype is None and method == "gram" else dtype
            arch, table = tables_of(x.device) if x.is_cuda else (None, None)
            chosen = planned(
                n, m, size, x.dtype, x.device.type, request.accuracy, steps, _FORMS.get(method),
                own, request.restarts, arch, request.tiles, table,
            )  # fmt: skip
            run_plan(batch, chosen, place)


def run_plan(x: Tensor, chosen: Plan, out: Tensor, ops: Products | None = None) -> None:
    """Run a plan on (b, n, m), n <= m.

    Args:
        x: The batch.
        chosen: The plan.
        out: Where the result goes, (b, n, m) of any dtype and strides.
        ops: The products, default those for x's device.
    """
    if chosen.one_launch and runs_in_one_launch(x, chosen):
        from ..kernels.launch_small import orthogonalize_small

        orthogonalize_small(x, chosen.schedule, out, chosen.configs().get("small"))
        return
    schedule, size, room = chosen.schedule, len(x), None
    if x.device.type == "cpu":
        size = min(size, _members_at_once(x, chosen.dtype))
        room = _Room(x, size, chosen.dtype) if chosen.form == "direct" else None
    if ops is None:
        ops = products_for(x, chosen, room.ring if room else None)
    for part, place in zip(x.split(size), out.split(size), strict=True):
        spare = [buffer[: len(part)] for buffer in room.buffers] if room else []
        start = begin(part, chosen.dtype, schedule.normalization, ops, spare[0] if spare else None)
        fits = ops.casts or place.dtype == chosen.dtype
        if chosen.form == "gram" or len(schedule.steps) == 1:
            # X is read when the result is written, which therefore must not lie over it.
            fits = fits and (not start.looked or place.data_ptr() != start.x.data_ptr())
        goal = place if fits else None
        if chosen.form == "direct":
            y = direct(start, schedule, ops, goal, spare)
        else:
            y = gram(start, schedule, ops, chosen.restarts, goal)
        if y is not place:
            place.copy_(y)
    if room is not None:
        _KEPT.give(room.memory)


def products_for(x: Tensor, chosen: Plan, ring: Tensor | None = None) -> Products:
    """Return Triton's products where their tiles fill the GPU, PyTorch's everywhere else."""
    if not x.is_cuda or chosen.dtype not in (torch.float16, torch.bfloat16):
        return TorchProducts(ring)
    arch = architecture(x.device)
    if not has_table(arch) or not worth_tiles(load_table(arch), x.shape[0], x.shape[-2]):
        return TorchProducts()
    # Gradients of odd shapes take other tiles than the plan's, which its launches choose.
    if not trusted(x.device, chosen.configs()):
        return TorchProducts()
    from ..kernels.launch import TritonProducts

    return TritonProducts(chosen.configs())


def runs_in_one_launch(x: Tensor, chosen: Plan) -> bool:
    """Say whether the one-launch kernel may be used: interpreted, or where it is trusted."""
    if x.device.type != "cuda":
        return True
    if not triton_runs(x.device):
        return False
    own = chosen.configs().get("small") or small_config(architecture(x.device), x.shape[-2])
    long = x.shape[-1] > PROGRAM_COLUMNS
    return trusted(x.device, {"long" if long else "small": own})


def _members_at_once(x: Tensor, dtype: torch.dtype) -> int:
    """Return how many matrices a CPU works on at a time.

    Small ones all at once: there the calls are what costs. Large ones a few at a time: their
    products and the passes over them then stay in the cache.
    """
    _, n, m = x.shape
    if n <= SMALL:
        return len(x)
    size = max(1, _CHUNK // (n * m))
    if dtype == torch.bfloat16 and cpu_has_amx():
        # A matrix for each thread: oneDNN runs two products of 768 rows on two threads in the
        # time of one, since it splits a single one so small badly.
        threads = min(torch.get_num_threads(), max(1, _WORKSPACE // (n * m)))
        size = -(-size // threads) * threads
    return size


class _Room:
    """Two buffers for `size` matrices like x's and a ring of n x n ones, in memory that is kept.

    A tall X stays as it lies: a transposing copy would cost more than its slower Gram matrices.
    """

    def __init__(self, x: Tensor, size: int, dtype: torch.dtype) -> None:
        n, m = x.shape[-2:]
        tall = x.stride(-1) != 1
        large, small = 2 * size * n * m, _RING * size * n * n
        self.memory = _KEPT.take((large + small) * dtype.itemsize)
        flat = self.memory[: (large + small) * dtype.itemsize].view(dtype)
        buffers = flat[:large].view(2, size, *((m, n) if tall else (n, m))).unbind()
        self.buffers = [b.mT for b in buffers] if tall else list(buffers)
        self.ring = flat[large:].view(_RING, size, n, n)


def run_together(pairs: Sequence[tuple[Tensor, Tensor]], schedule: Schedule) -> None:
    """Run the Gram form on several batches with one iteration.

    Args:
        pairs: (b, m, n) in float32 on a CPU, and where its result goes, of one shorter side.
        schedule: The steps, which need no restart.
    """
    wide = [tuple(t.mT if t.shape[1] > t.shape[2] else t for t in pair) for pair in pairs]
    xs, outs = ([pair[i] for pair in wide] for i in range(2))
    ops, counts, n = TorchProducts(), [len(x) for x in xs], xs[0].shape[1]
    r = torch.empty(sum(counts), n, n, device="cpu", dtype=torch.float32)
    parts = r.split(counts)
    for x, part in zip(xs, parts, strict=True):
        torch.bmm(x, x.mT, out=part)
    bound = first_bound(r, schedule.normalization)
    lost = ~in_range(bound)
    if bool(lost.any()):
        some = zip(xs, parts, lost.split(counts), strict=True)
        xs = [rescaled(x, x, part, at, ops) if bool(at.any()) else x for x, part, at in some]
        bound = first_bound(r, schedule.normalization)
    u, factor = normalize_gram(r, bound, schedule.normalization, ops, look=True)
    q = scale_members(carried_polynomial(r, schedule.coefficients, ops, u), factor)
    for x, part, out in zip(xs, q.split(counts), outs, strict=True):
        ops.apply(part, x, out)
