"""Shared by all tests: one thread, no leftover random state, the gpu marker."""

import pytest
import torch


def pytest_configure() -> None:
    # Two test processes on two cores must not fight for them; also makes reductions repeatable.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA or ROCm device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
