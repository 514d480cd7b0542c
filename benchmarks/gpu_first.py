"""The first minutes on a GPU: what to find out before anything else, most important first.

    python benchmarks/gpu.py --first [--out FILE]     # about ten minutes
    python benchmarks/gpu.py --first --fake           # the same control flow on a CPU, in seconds

Every stage is a process of its own with a time limit, so that one that hangs or crashes takes none
of the others with it. Results are written after each stage. With `--fake` kernels are launched on a
driver that runs nothing and everything else is done on the CPU, in small sizes: values then say
nothing, but each line has run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Muon as TorchMuon

from torch_specgd import Muon
from torch_specgd.triton_kernels import SCHEDULES, orthogonalize, plan

ROOT = Path(__file__).parents[1]
Found = dict[str, Any]
GPT2 = ((2304, 768), (768, 768), (3072, 768), (768, 3072))


class Machine:
    """A GPU, or with `fake` the CPU in its place."""

    def __init__(self, fake: bool) -> None:
        self.fake = fake
        self.device = torch.device("cpu" if fake else "cuda")
        self.blocks, self.repeats = (1, 2) if fake else (12, 20)
        self.shapes = ((48, 32), (32, 80)) if fake else GPT2

    def wait(self) -> None:
        """Wait for all launches."""
        if not self.fake:
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], object], repeats: int = 0) -> float:
        """Return the time of one of several calls, after a first."""
        work()
        self.wait()
        start = time.perf_counter()
        for _ in range(repeats or self.repeats):
            work()
        self.wait()
        return 1e3 * (time.perf_counter() - start) / (repeats or self.repeats)

    def model(self, shapes: Any = None, seed: int = 0) -> list[nn.Parameter]:
        """Return the same parameters on any device."""
        torch.manual_seed(seed)
        shapes = shapes or self.shapes * self.blocks
        return [nn.Parameter(torch.randn(s).mul_(0.02).to(self.device)) for s in shapes]


def _gradients(params: list[nn.Parameter], seed: int) -> None:
    """New gradients of the same numbers on any device, at new addresses."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.device)


def _off(found: Tensor, truth: Tensor) -> float:
    found, truth = found.detach().double().to(truth.device), truth.detach().double()
    return float((found - truth).abs().max() / truth.abs().max())


def products(m: Machine) -> Found:
    """Versions, and one product each way against float64."""
    import triton

    from torch_specgd.triton_kernels.kernels import launch

    result: Found = {"torch": torch.__version__, "triton": triton.__version__}
    if not m.fake:
        result |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.randn(3, 256, 520, device=m.device).to(dtype)
        q = torch.randn(3, 256, 256, device=m.device).to(dtype)
        for name, y in (("rows", x), ("columns", x.mT.contiguous().mT)):
            gram, applied = launch.symmetric(y, y), launch.apply(q, y)
            key = f"{dtype} {name}".removeprefix("torch.")
            result[f"gram {key}"] = _off(gram, x.double() @ x.double().mT)
            result[f"apply {key}"] = _off(applied, q.double() @ x.double())
    return result


def small(m: Machine) -> Found:
    """The one-launch kernel: errors, and whether a hundred runs give the same bits."""
    from torch_specgd.triton_kernels.kernels.launch_small import orthogonalize_small

    result: Found = {}
    for n in (16, 32, 33, 48, 60, 64):
        for batch in (1, 7) if m.fake else (1, 7, 192, 2048):
            x = torch.randn(batch, n, 300, device=m.device)
            first = orthogonalize_small(x, SCHEDULES["deep"])
            truth = orthogonalize(x[:8].double().cpu(), method="gram", schedule="deep")
            runs = range(2 if m.fake else 100)
            same = all(torch.equal(first, orthogonalize_small(x, SCHEDULES["deep"])) for _ in runs)
            divided = orthogonalize_small(x, SCHEDULES["deep"], columns=128)
            result[f"{batch} x {n}"] = {
                "off": _off(first[:8], truth),
                "same bits": same,
                "off, by several programs": _off(divided[:8], truth),
            }
    return result


def marked(m: Machine, files: str = "engine/test_triton_gpu.py") -> Found:
    """The tests of some files that are marked for a GPU."""
    chosen = ["-m", "gpu", *sorted(map(str, (ROOT / "tests").glob(files)))]
    options = ["--collect-only", "-q"] if m.fake else ["-q"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *chosen],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {"exit": done.returncode, "last lines": done.stdout.splitlines()[-30:]}


def steps(m: Machine) -> Found:
    """Steps of models whose gradients move, against the same steps in float32 on the CPU."""
    result: Found = {}
    kinds = {
        "GPT-2 small": m.shapes * m.blocks,
        "LoRA 16": ((16, 768), (768, 16)) * 12,
        "LoRA 64": ((64, 768), (768, 64)) * 12,
        "convolutions": ((64, 3, 7, 7), (128, 64, 3, 3), (5, 3, 3, 3)),
    }
    for kind, shapes in kinds.items():
        ours, truth = m.model(shapes), m.model(shapes)
        truth = [nn.Parameter(p.detach().cpu()) for p in truth]
        a, b = Muon(ours, lr=0.02), Muon(truth, lr=0.02, compute_dtype="float32")
        for step in range(2 if m.fake else 20):
            _gradients(truth, step)
            for p, t in zip(ours, truth, strict=True):
                assert t.grad is not None
                p.grad = t.grad.to(p.device, copy=True)
            a.step()
            b.step()
        result[kind] = max(_off(p, t) for p, t in zip(ours, truth, strict=True))
    return result


STATES = (None, "bfloat16", "int8", "int4")  # of which all but the first draw random bits


def waiting(m: Machine) -> Found:
    """Whole steps, vectors included, under torch's search for what makes the host wait."""
    result: Found = {}
    for kept in STATES:
        params = m.model((*m.shapes, (33,)))
        optimizer = Muon(params, lr=0.02, state_dtype=kept)
        for step in range(3):
            _gradients(params, step)
            if step and not m.fake:
                m.wait()
                torch.cuda.set_sync_debug_mode("error")
            optimizer.step()
            if not m.fake:
                torch.cuda.set_sync_debug_mode("default")
        result[f"waits, state {kept}"] = False
    return result


def _replayed(m: Machine, optimizer: Muon) -> None:
    """Take three steps, of which the last two are replays of a CUDA graph."""
    optimizer.step()
    if m.fake:
        optimizer.step()
        optimizer.step()
        return
    m.wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    graph.replay()
    graph.replay()
    m.wait()


def capture(m: Machine) -> Found:
    """A step in a CUDA graph, and compiled, against the eager one."""
    result: Found = {}
    for kept in STATES:
        eager, other = (m.model((*m.shapes, (33,))) for _ in range(2))
        a, b = (Muon(p, lr=0.02, capturable=not m.fake, state_dtype=kept) for p in (eager, other))
        for params in (eager, other):
            _gradients(params, 0)
        for _ in range(3):
            a.step()
        _replayed(m, b)
        off = max(_off(p, t) for p, t in zip(other, eager, strict=True))
        result[f"graph, state {kept}"] = off
    x = torch.randn(24, 16, 200, device=m.device)
    mode = {"backend": "eager"} if m.fake else {"mode": "reduce-overhead"}
    compiled = torch.compile(lambda t: orthogonalize(t), **mode)  # type: ignore[call-overload]
    again = [_off(compiled(x).clone(), orthogonalize(x)) for _ in range(3)]
    return result | {"compiled": max(again)}


@contextmanager
def _setting(setter: Callable[[Any], object], value: object, usual: object) -> Iterator[None]:
    setter(value)
    yield
    setter(usual)


def modes(m: Machine) -> Found:
    """Autocast, inference and deterministic mode, another default dtype."""
    result: Found = {}
    for shape in ((8, 16, 512), (12, 512, 512)):
        x = torch.randn(shape, device=m.device)
        expected = orthogonalize(x)
        for name, mode in (
            ("autocast", torch.autocast(m.device.type, torch.bfloat16)),
            ("inference", torch.inference_mode()),
            ("deterministic", _setting(torch.use_deterministic_algorithms, True, False)),
            ("float64", _setting(torch.set_default_dtype, torch.float64, torch.float32)),
            ("bfloat16", _setting(torch.set_default_dtype, torch.bfloat16, torch.float32)),
            ("plain", nullcontext()),
        ):
            with mode:
                result[f"{name} {shape}"] = _off(orthogonalize(x), expected)
    return result


def library(m: Machine) -> Found:
    """Products with descriptors, without, and of the vendor's library, in milliseconds."""
    from torch_specgd.triton_kernels.kernels import launch

    result: Found = {}
    large = ((12, 768, 3072), (1, 4096, 4096), (8, 1024, 4096))
    for shape in ((2, 128, 256),) if m.fake else large:
        x = torch.randn(shape, device=m.device, dtype=torch.bfloat16)
        q = torch.randn(shape[0], shape[1], shape[1], device=m.device, dtype=torch.bfloat16)
        plain = plan(shape[1:], shape[0], device="cuda", arch="sm_80").configs()
        result[str(shape)] = {
            "gram": m.milliseconds(lambda x=x: launch.symmetric(x, x)),
            "gram, pointers": m.milliseconds(
                lambda x=x, c=plain: launch.symmetric(x, x, config=c.get("symmetric"))
            ),
            "gram, library": m.milliseconds(lambda x=x: torch.bmm(x, x.mT)),
            "apply": m.milliseconds(lambda x=x, q=q: launch.apply(q, x)),
            "apply, library": m.milliseconds(lambda x=x, q=q: torch.bmm(q, x)),
        }
    return result


def host(m: Machine) -> Found:
    """What a step costs the host and the device, and peak memory beyond parameters and state."""
    params = m.model()
    optimizer = Muon(params, lr=0.02)
    _gradients(params, 0)
    optimizer.step()
    m.wait()
    start = time.perf_counter()
    optimizer.step()
    submitted = time.perf_counter()
    m.wait()
    result: Found = {
        "host ms": 1e3 * (submitted - start),
        "step ms": m.milliseconds(optimizer.step),
    }
    if not m.fake:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        optimizer.step()
        result["MB beyond"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    return result


def peers(m: Machine) -> Found:
    """Steps of torch.optim.Muon on the same model, and gram-newton-schulz where it is installed."""
    params = m.model()
    _gradients(params, 0)
    result: Found = {
        "torch.optim.Muon ms": m.milliseconds(TorchMuon(params, lr=0.02).step),
        "ours ms": m.milliseconds(Muon(params, lr=0.02).step),
    }
    try:
        from gram_newton_schulz.gram_newton_schulz import GramNewtonSchulz
    except ImportError:
        return result
    x = torch.randn(m.blocks, *m.shapes[-1], device=m.device)
    result["gram-newton-schulz ms"] = m.milliseconds(lambda: GramNewtonSchulz()(x))
    result["ours, the same matrices ms"] = m.milliseconds(lambda: orthogonalize(x))
    return result


def tuning(m: Machine) -> Found:
    """A table of measured tiles, as far as the time goes."""
    from torch_specgd.triton_kernels.workshop.tuning import tune

    path = ROOT / "tuned.json"
    measure = (lambda kind, config, shape: 1.0) if m.fake else None
    table = tune(path, measure)
    path.unlink()
    return {"table": table}


# In the order of what must be known first, with seconds at most.
STAGES: dict[str, tuple[Callable[[Machine], Found], int]] = {
    "products": (products, 120), "small": (small, 120), "tests": (marked, 240),
    "steps": (steps, 240), "waiting": (waiting, 40), "capture": (capture, 90), "modes": (modes, 40),
    "library": (library, 60), "host": (host, 40), "peers": (peers, 60),
    "optimizers": (partial(marked, files="optimizers/test_optimizer_info_*.py"), 120),
    "tuning": (tuning, 120),
}  # fmt: skip


def run_stage(name: str, fake: bool) -> Found:
    """Run one stage in this process."""
    with ExitStack() as stack:
        if fake:
            sys.path.insert(0, str(ROOT / "tests"))
            from reference.fake_driver import fake_driver

            stack.enter_context(fake_driver(80))
        return STAGES[name][0](Machine(fake))


def _in_process(name: str, fake: bool) -> Found:
    command = [sys.executable, __file__, name, *(["--fake"] if fake else [])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=STAGES[name][1]
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {STAGES[name][1]} s"}
    if done.returncode:
        return {"error": done.stderr[-2000:]}
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def first(out: Path, fake: bool = False, apart: bool = True) -> Found:
    """Run all stages, and write what each has found before the next begins.

    Args:
        out: The file.
        fake: Whether there is no GPU.
        apart: Whether every stage has a process and a time limit of its own.
    """
    results: Found = {}
    for name in STAGES:
        start = time.perf_counter()
        found = _in_process(name, fake) if apart else run_stage(name, fake)
        results[name] = found | {"seconds": round(time.perf_counter() - start, 1)}
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {json.dumps(results[name])[:300]}", flush=True)
    return results


if __name__ == "__main__":
    print(json.dumps(run_stage(sys.argv[1], "--fake" in sys.argv)))
