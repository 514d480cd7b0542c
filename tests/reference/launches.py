"""Which configurations the kernels are launched with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch_specgd.triton_kernels.kernels import launch, launch_small

Launches = list[tuple[str, dict[str, Any]]]
# What a launch is told beside the tiles.
_OTHERS = {
    "HAS_C", "PRECISION", "GROUP", "STEPS", "LINKS", "SCHATTEN4", "COLUMNS", "enable_fp_fusion",
}  # fmt: skip


def _told(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in _OTHERS}


def exactly(seen: Launches, configs: dict[str, dict[str, Any]]) -> bool:
    """Whether every kind of kernel was launched, and only with its configuration."""
    expected = [(kind, _told(config)) for kind, config in configs.items()]
    return all(one in seen for one in expected) and all(one in expected for one in seen)


class _Recording:
    """A kernel that notes the options of every launch."""

    def __init__(self, kind: str, kernel: Any, seen: Launches) -> None:
        self._kind, self._kernel, self._seen = kind, kernel, seen

    def __getitem__(self, grid: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            self._seen.append((self._kind, _told(options)))
            return self._kernel[grid](*arguments, **options)

        return run


@contextmanager
def recorded() -> Iterator[Launches]:
    """Note every launch of the three kinds of kernels as (kind, configuration)."""
    seen: Launches = []
    places = (
        (launch, "symmetric_kernel", "symmetric"),
        (launch, "apply_kernel", "apply"),
        (launch_small, "small_kernel", "small"),
    )
    old = [mock.patch.object(m, n, _Recording(k, getattr(m, n), seen)) for m, n, k in places]
    for patch in old:
        patch.start()
    try:
        yield seen
    finally:
        for patch in old:
            patch.stop()
