"""Whole steps of Muon under the capture of a CUDA graph, and the tables that they read."""

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

pytest.importorskip("triton")

from engine.test_capture import _capture
from engine.test_capture import gpu as gpu  # a fixture
from torch_specgd import Muon
from torch_specgd.step.muon import muon
from torch_specgd.triton_kernels import engine, multi_tensor, operator
from torch_specgd.triton_kernels.kernels import owned as owned_memory
from torch_specgd.triton_kernels.kernels.owned import Owned

# The sizes of models, and of adapters on one.
GPT2 = 12 * ((2304, 768), (768, 768), (3072, 768), (768, 3072))
LORA = 32 * ((16, 4096), (4096, 16), (16, 4096), (1024, 16), (16, 4096), (4096, 16))
LLAMA = 32 * (
    (4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096),
    (14336, 4096), (14336, 4096), (4096, 14336),
)  # fmt: skip


class Addresses:
    """Addresses of storages: new memory never lies where other memory has been."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._seen: dict[int, tuple[int, object]] = {}
        monkeypatch.setattr(FakeTensor, "data_ptr", lambda tensor: self.of(tensor))

    def of(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        number, _ = self._seen.setdefault(storage._cdata, (len(self._seen) + 1, storage))
        return 2**40 * number + tensor.storage_offset() * tensor.element_size()


@pytest.fixture
def step(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A step of Muon on a GPU, as it runs on plain tensors."""
    Addresses(monkeypatch)
    monkeypatch.setattr(multi_tensor, "_PLAIN", {FakeTensor})
    monkeypatch.setattr(engine, "orthogonalize_op", operator._new)

    def run(p: list, g: list, b: list, lr: object = 0.02, owner: object = None) -> None:
        with torch.no_grad():
            muon(
                p, g, b, lr=lr, weight_decay=0.1, momentum=0.95, nesterov=True,  # type: ignore[arg-type]
                ns_coefficients="auto", eps=1e-7, ns_steps=5, adjust_lr_fn=None, owner=owner,
            )  # fmt: skip

    return run


def _tensors(shapes: Any, dtype: torch.dtype = torch.float32) -> list[list[torch.Tensor]]:
    return [[torch.empty(s, device="cuda", dtype=dtype) for s in shapes] for _ in range(3)]


@pytest.mark.parametrize("shape", [(768, 768), (768, 3072), (3072, 768), (16, 1024)])
def test_a_step_of_muon_never_waits(
    gpu: SimpleNamespace, step: Callable[..., None], shape: tuple[int, int]
) -> None:
    """Fresh updates had fresh addresses, whose table was a copy from the host."""
    p, g, b = _tensors([shape] * 4)
    lr = torch.empty((), device="cuda")
    found = _capture(gpu, lambda: step(p, g, b, lr))
    assert found[0][0] == "momentum_kernel"
    assert found[-1][0] == "update_kernel"


@pytest.mark.parametrize("kept", ["bfloat16", "int8", "int4"])
def test_a_step_with_narrow_state_never_waits(
    gpu: SimpleNamespace, step: Callable[..., None], kept: str
) -> None:
    """A generator's seed is read by the host: replays would round with the same bits."""
    shapes = ((768, 768), (768, 3072), (16, 1024), (64, 3, 3, 3), (768,), ())
    params = [torch.nn.Parameter(torch.empty(s, device="cuda")) for s in shapes]
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer = Muon(params, state_dtype=kept, capturable=True)
    optimizer.param_groups[0]["lr"] = torch.empty((), device="cuda")  # has no value to check
    _capture(gpu, optimizer.step)
    assert "aten.add_.Tensor" in gpu.mode.names  # of the count
    assert sum("randint" in name or "rand." in name for name in gpu.mode.names) == 0


@pytest.mark.parametrize(
    ("shapes", "dtype", "launches"),
    [(GPT2, torch.float32, 62), (LORA, torch.float32, 5), (LLAMA, torch.bfloat16, 493)],
)
def test_a_step_uploads_no_table_again(
    gpu: SimpleNamespace,
    step: Callable[..., None],
    shapes: Any,
    dtype: torch.dtype,
    launches: int,
) -> None:
    """A large model missed 296 of 754 tables in every step, and each miss waits for a copy."""
    p, g, b = _tensors(shapes, dtype)
    owned = Owned.by(p[0])
    step(p, g, b)
    first = owned.copies
    gpu.launches.clear()
    step(p, g, b)
    assert owned.copies == first
    assert len(gpu.launches) == launches
    # A row for each tensor of a launch, and not one for each of millions of chunks.
    assert sum(t.memory.numel() for some in owned._tables.values() for t in some) <= 24 * len(
        shapes
    )


def test_gradients_that_move_keep_few_tables(
    gpu: SimpleNamespace, step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With zero_grad(set_to_none=True) every step would leave a table behind."""
    monkeypatch.setattr(owned_memory, "_ROWS", 30)
    p, g, b = _tensors([(300, 400)] * 3)
    owner = object_with_memory()
    for _ in range(100):
        g = [torch.empty_like(x) for x in g]
        step(p, g, b, owner=owner)
    owned = Owned.by(owner)
    assert owned.copies == 101  # one of momentum a step, and one of the weights
    assert sum(t.tensors for some in owned._tables.values() for t in some) <= 30


def test_tables_of_a_model_of_experts_are_kept() -> None:
    """Of 48 layers of 128 experts each step would upload all tables again."""
    experts = torch.empty(3 * 128 * 48 * 64, device="meta").view(-1, 8, 8).unbind()
    owned = Owned()
    for _ in range(2):
        copies = owned.copies
        for i in range(0, len(experts), 1024):
            some = experts[i : i + 1024]
            owned.tables((some, some, some), 1024)
            owned.tables((some, some), 1024, [1.0] * len(some))
    assert owned.copies == copies == 36


def test_tables_come_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from other memory waits for the launches before it."""
    asked: dict[str, Any] = {}

    class Values:
        def to(self, device: torch.device, **options: Any) -> None:
            asked.update(options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "tensor", lambda rows, **options: asked.update(options) or Values())
    owned_memory._on_device([(1, 2)], torch.device("cuda", 0))
    assert asked["pin_memory"]
    assert asked["non_blocking"]


def object_with_memory() -> object:
    class Owner:
        pass

    return Owner()


def test_what_a_capture_used_is_kept(
    gpu: SimpleNamespace, step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 256 other tables a replayed graph read freed memory."""
    p, g, b = _tensors([(300, 400)] * 3)
    owner = object_with_memory()
    step(p, g, b, owner=owner)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    step(p, g, b, owner=owner)
    with pytest.raises(RuntimeError, match="before the capture"):
        step(p, [torch.empty_like(x) for x in g], b, owner=owner)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    owned = Owned.by(owner)
    captured = list(owned._captured.values())
    monkeypatch.setattr(owned_memory, "_ROWS", 30)
    for _ in range(100):
        step(p, [torch.empty_like(x) for x in g], b, owner=owner)
    assert list(owned._captured.values()) == captured
    copies = owned.copies
    step(p, g, b, owner=owner)
    assert owned.copies == copies


def test_memory_ends_with_its_owner(gpu: SimpleNamespace, step: Callable[..., None]) -> None:
    """A model that is gone would keep its updates' memory on the GPU."""
    p, g, b = _tensors([(300, 400)] * 3)
    owner = object_with_memory()
    step(p, g, b, owner=owner)
    room = weakref.ref(Owned.by(owner)._rooms[p[0].device])
    del owner
    gc.collect()
    assert room() is None
