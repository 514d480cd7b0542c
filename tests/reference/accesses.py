"""A memory checker for Triton's interpreter: every load and store of every program is looked at.

The interpreter has the addresses and masks of all accesses in its hands. Each is compared with the
elements of the launch's own tensors, so that what lies between the rows of a view, or beside it in
the same storage, is foreign as well. An element that one program writes must be no other's.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder
from triton.tools.tensor_descriptor import TensorDescriptor

from torch_specgd.triton_kernels.kernels import elementwise, launch, launch_small

KERNELS = (
    (launch, "symmetric_kernel"),
    (launch, "apply_kernel"),
    (launch_small, "parts_kernel"),
    (launch_small, "small_kernel"),
    (elementwise, "momentum_kernel"),
    (elementwise, "update_kernel"),
)


class ForeignAccess(AssertionError):
    """A program has touched what is not its own."""


def addresses(x: Tensor) -> np.ndarray:
    """Return where the elements of a tensor lie."""
    steps = [np.arange(n) * s for n, s in zip(x.shape, x.stride(), strict=True)]
    offsets = reduce(np.add.outer, steps, np.zeros((), dtype=np.int64)).ravel()
    return (x.data_ptr() + offsets * x.element_size()).astype(np.uint64)


class Accesses:
    """What the launches so far have touched.

    Attributes:
        launches: How many there were of each kernel.
        loads: Elements that were loaded.
        stores: Elements that were stored.
    """

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.loads = self.stores = 0
        self.lists: Sequence[Tensor] = ()  # what a table of addresses points at
        self._name = ""
        self._own = np.zeros(0, dtype=np.uint64)
        self._touched: dict[str, list[tuple[int, np.ndarray]]] = {}

    def begin(self, name: str, arguments: Sequence[Any]) -> None:
        """Take note of the tensors that the next launch may touch."""
        self._name, self._touched = name, {"load": [], "store": []}
        self.launches[name] += 1
        own = [a.base if isinstance(a, TensorDescriptor) else a for a in arguments]
        tensors = [a for a in (*own, *self.lists) if isinstance(a, Tensor)]
        self._own = np.unique(np.concatenate([addresses(t) for t in tensors]))

    def note(self, kind: str, program: int, pointers: Any, mask: Any) -> None:
        """Look at one access before it happens."""
        at = np.asarray(pointers)[np.asarray(mask, dtype=bool)].ravel().astype(np.uint64)
        if self._name == "" or at.size == 0:
            return
        found = np.searchsorted(self._own, at).clip(max=len(self._own) - 1)
        foreign = at[self._own[found] != at]
        if foreign.size:
            gap = int(foreign[0]) - int(self._own[found][self._own[found] != at][0])
            self._wrong(f"{kind} of {foreign.size} foreign elements by {program}, {gap} bytes off")
        if kind == "store" and np.unique(at).size < at.size:
            self._wrong(f"two threads of program {program} store to one element")
        self._touched[kind].append((program, at))

    def end(self) -> None:
        """Compare the programs of the launch with each other."""
        loads, stores = (self._joined(kind) for kind in ("load", "store"))
        self.loads, self.stores = self.loads + len(loads[0]), self.stores + len(stores[0])
        order = np.lexsort(stores[::-1])
        at, by = (part[order] for part in stores)
        if np.any((at[1:] == at[:-1]) & (by[1:] != by[:-1])):
            self._wrong("two programs store to one element")
        if at.size:
            found = np.searchsorted(at, loads[0]).clip(max=len(at) - 1)
            if np.any((at[found] == loads[0]) & (by[found] != loads[1])):
                self._wrong("a program loads what another one stores")
        self._name = ""

    def _joined(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        some = self._touched[kind]
        at = np.concatenate([a for _, a in some]) if some else np.zeros(0, dtype=np.uint64)
        return at, np.repeat([p for p, _ in some], [len(a) for _, a in some])

    def _wrong(self, what: str) -> None:
        name, self._name = self._name, ""
        raise ForeignAccess(f"{name}: {what}")


class _Watched:
    """A kernel whose launches are looked at."""

    def __init__(self, kernel: Any, name: str, seen: Accesses) -> None:
        self._kernel, self._name, self._seen = kernel, name, seen

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def run(*arguments: Any, **options: Any) -> None:
            self._seen.begin(self._name, arguments)
            self._kernel[grid](*arguments, **options)
            self._seen.end()

        return run


@contextmanager
def watched(kernels: Sequence[tuple[Any, str]] = KERNELS) -> Iterator[Accesses]:
    """Look at every access of the kernels while they are interpreted.

    Args:
        kernels: Where they lie, as (module, name).

    Yields:
        What has been seen; ForeignAccess is raised, inside an error of the interpreter, by the
        first access that is wrong.
    """
    seen = Accesses()

    def noting(kind: str, inner: Callable[..., Any], mask_at: int) -> Callable[..., Any]:
        def access(builder: Any, pointers: Any, *rest: Any, **options: Any) -> Any:
            seen.note(kind, builder.grid_idx[0], pointers.data, rest[mask_at].data)
            return inner(builder, pointers, *rest, **options)

        return access

    def listing(inner: Callable[..., None], lists: int) -> Callable[..., None]:
        def step(*arguments: Any, **options: Any) -> None:
            seen.lists = [t for some in arguments[:lists] for t in some]
            inner(*arguments, **options)
            seen.lists = ()

        return step

    with ExitStack() as stack:
        for module, name in kernels:
            kernel = _Watched(getattr(module, name), name, seen)
            stack.enter_context(mock.patch.object(module, name, kernel))
        for method, kind, mask_at in (
            ("create_masked_load", "load", 0),
            ("create_masked_store", "store", 1),
        ):
            inner = noting(kind, getattr(InterpreterBuilder, method), mask_at)
            stack.enter_context(mock.patch.object(InterpreterBuilder, method, inner))
        for name, lists in (("momentum", 3), ("update", 2)):
            own = listing(getattr(elementwise, name), lists)
            stack.enter_context(mock.patch.object(elementwise, name, own))
        yield seen
