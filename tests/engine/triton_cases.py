"""Runs the Triton kernels in the interpreter and saves what they return; see test_triton_values.py.

A program of its own, because TRITON_INTERPRET must be set before the kernels are decorated,
and a process in which they are interpreted cannot compile them.
"""

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor
from triton.runtime.errors import InterpreterError

Case = tuple[str, dict[str, Tensor]]
SIZES = ((1, 17), (17, 1), (33, 130), (130, 33))


def products() -> Iterator[Case]:
    """Symmetric and general products: sizes, dtypes, strides, all epilogues."""
    from torch_specgd.triton_kernels.kernels import launch

    for dtype in (torch.float32, torch.float16):
        for n, k in SIZES:
            base = torch.randn(2, k, n)
            for layout, x in (("rows", base.mT.contiguous()), ("columns", base.mT)):
                x = x.to(dtype)
                c = torch.randn(2, n, n)
                c = (c + c.mT).to(dtype)
                d = launch.symmetric(x, x, c, (0.5, 0.25, 3.0))
                gram = launch.symmetric(x, x)
                q = (gram / gram.float().norm()).to(dtype)
                y = launch.apply(q, x)
                name = f"product-{dtype}-{n}x{k}-{layout}".replace("torch.", "")
                yield name, dict(x=x, c=c, d=d, gram=gram, q=q, y=y)


def descriptors() -> Iterator[Case]:
    """Both products through tensor descriptors, ragged, a batch of several, results of float32."""
    from torch_specgd.triton_kernels.kernels import launch

    tile = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32, "DESCRIPTOR": True, "num_warps": 4,
            "PRECISION": "ieee"}  # fmt: skip

    def in_rows(x: Tensor) -> Tensor:
        # Triton 3.5's interpreter wants rows of multiples of 16 elements, a GPU of 16 bytes.
        room = torch.full((*x.shape[:2], -(-x.shape[2] // 16) * 16), torch.nan, dtype=x.dtype)
        room[..., : x.shape[2]] = x
        return room[..., : x.shape[2]]

    for n, m in ((40, 136), (136, 40), (64, 64)):
        x = in_rows(torch.randn(3, n, m).half())
        x[1] = torch.nan  # a tile that reaches over the edge reads zeros, not the next matrix
        gram = launch.symmetric(x, x, config=tile | {"STRIPS": 1})
        q = in_rows(torch.randn(3, n, n).half())
        y = launch.apply(q, x, torch.empty(3, n, m), tile)
        yield f"descriptor-{n}x{m}", dict(x=x, gram=gram, q=q, y=y)


def small() -> Iterator[Case]:
    """Whole orthogonalizations in one launch, at scales and ranks that break naive sums."""
    from torch_specgd.triton_kernels import SCHEDULES
    from torch_specgd.triton_kernels.kernels.launch_small import orthogonalize_small

    wide = torch.randn(2, 7, 150)
    inputs = {
        "plain": wide,
        "tiny": wide * 1e-30,
        "huge": wide * 1e30,
        "zero": torch.zeros(1, 16, 20),
        "rank_one": torch.randn(1, 20, 1) @ torch.randn(1, 1, 33),
        "strided": torch.randn(1, 70, 20).mT,
        "one_row": torch.randn(2, 1, 9),
        "half": torch.randn(1, 20, 40).half(),
        "scratch": torch.randn(1, 33, 65),
    }
    for name, x in inputs.items():
        for schedule in ("degree9_3", "polar_express"):
            y = orthogonalize_small(x, SCHEDULES[schedule])
            yield f"small-{name}-{schedule}", dict(x=x, y=y)
    broken = torch.randn(3, 8, 16)
    broken[1, 2, 3] = torch.nan
    y = orthogonalize_small(broken, SCHEDULES["degree9_3"])
    yield "small-broken-degree9_3", dict(x=broken, y=y)


def long() -> Iterator[Case]:
    """Matrices of which each program takes as many columns as it loads at once."""
    from torch_specgd.triton_kernels import SCHEDULES
    from torch_specgd.triton_kernels.kernels.configuration import small_config
    from torch_specgd.triton_kernels.kernels.launch_small import orthogonalize_small

    wide = torch.randn(2, 7, 150)
    inputs = {
        "plain": wide,
        "tiny": wide * 1e-30,
        "huge": wide * 1e30,
        "zero": torch.zeros(1, 16, 70),
        "rank_one": torch.randn(1, 20, 1) @ torch.randn(1, 1, 133),
        "strided": torch.randn(2, 170, 20).mT,
        "scales": wide * torch.cat([torch.full((65,), 1e-20), torch.full((85,), 1e10)]),
        "half": torch.randn(1, 20, 140).half(),
        "scratch": torch.randn(2, 33, 200),
    }
    for name, x in inputs.items():
        config = small_config("sm_80", x.shape[1])
        columns, schedule = config["BLOCK"], SCHEDULES["deep"]
        y = orthogonalize_small(x, schedule, config=config, columns=columns)
        over = x.clone()
        orthogonalize_small(over, schedule, over, config, columns)
        parts = torch.tensor(-(-x.shape[2] // columns))
        yield f"long-{name}", dict(x=x, y=y, over=over, parts=parts)


def whole() -> Iterator[Case]:
    """Plans over the Triton products: both forms, ragged, broken and tall batches, cast results."""
    from torch_specgd.triton_kernels import plan
    from torch_specgd.triton_kernels.iterate.run import run_plan
    from torch_specgd.triton_kernels.kernels.launch import TritonProducts

    plain = torch.randn(2, 33, 130)
    inputs = {
        "plain": plain,
        "tall": torch.randn(2, 130, 33),
        "row": torch.randn(2, 1, 17),
        "column": torch.randn(2, 17, 1),
        "rank_three": torch.randn(2, 33, 3) @ torch.randn(2, 3, 130),
        "zero": torch.zeros(1, 33, 130),
        "huge": 1e30 * plain,
        "tiny": 1e-30 * plain,
        "strided": torch.randn(130, 2, 66).permute(1, 2, 0)[:, ::2],
    }
    ops = TritonProducts()
    for dtype in (torch.float32, torch.float16):
        for form in ("direct", "gram"):
            for name in ("deep", "flat", "jordan"):
                # Jordan's steps have no safe restarts in float16.
                if name == "jordan" and form == "gram" and dtype == torch.float16:
                    continue
                for label, x in inputs.items():
                    if name != "deep" and label != "plain":
                        continue
                    chosen = plan(x.shape, schedule=name, form=form, arithmetic=dtype)
                    assert chosen.form == form
                    y = torch.empty_like(x)
                    tall = x.shape[-2] > x.shape[-1]
                    run_plan(x.mT if tall else x, chosen, y.mT if tall else y, ops)
                    yield (
                        f"whole-{dtype}-{form}-{name}-{label}".replace("torch.", ""),
                        dict(x=x, y=y),
                    )


def roots() -> Iterator[Case]:
    """An inverse root, a weighted sum of iterates and a round of an eigenbasis, and their launches.

    Symmetric products and general ones are counted apart.
    """
    from reference.launches import recorded
    from torch_specgd.triton_kernels import plan
    from torch_specgd.triton_kernels.iterate.roots import inverse_root_of
    from torch_specgd.triton_kernels.iterate.run import run_plan
    from torch_specgd.triton_kernels.kernels.launch import TritonProducts
    from torch_specgd.triton_kernels.spectral import power_schedule, root_schedule, turned_basis

    x = torch.randn(2, 33, 70)
    a, ops = x @ x.mT, TritonProducts()
    y, chosen = torch.empty_like(x), plan(x.shape, schedule=power_schedule(0.5))
    q = torch.linalg.eigh(a + torch.ones(33, 33))[1]
    calls = {
        "root": lambda: inverse_root_of(a, root_schedule(4), ops),
        "power": lambda: run_plan(x, chosen, y, ops),
        "basis": lambda: turned_basis(a, q, ops),
    }
    for name, call in calls.items():
        with recorded() as seen:
            found = call()
        kinds = [kind for kind, _ in seen]
        counts = torch.tensor([kinds.count(kind) for kind in ("symmetric", "apply")])
        found = y if found is None else found
        yield f"spectral-{name}", dict(x=x, a=a, q=q, y=found, counts=counts)


def tiles() -> Iterator[Case]:
    """Plans whose tiles are overridden, and whether exactly those were launched."""
    from reference.launches import exactly, recorded
    from torch_specgd.triton_kernels import plan
    from torch_specgd.triton_kernels.iterate.run import run_plan
    from torch_specgd.triton_kernels.kernels.launch import TritonProducts

    mine = {"BLOCK_M": 64, "BLOCK_N": 64}
    # As many of 300 rows as leave the vendor's library: their tiles for two of them here.
    batch, both = 40, {"symmetric": mine | {"STRIPS": 1}, "apply": mine}
    for form, shape, n in (("direct", (2, 80, 150), 300), ("gram", (2, 80, 150), 300),
                           ("small", (2, 16, 50), 16), ("scratch", (2, 60, 70), 60)):  # fmt: skip
        x = torch.randn(shape)
        y = torch.empty_like(x)
        if n == 300:
            chosen = plan(
                (n, 2 * n), batch=batch, device="cuda", arch="sm_80", form=form, tiles=both,
                arithmetic=torch.float16, restarts=(1, 2),
            )  # fmt: skip
            ops = TritonProducts(chosen.configs())
        else:
            # One stage differs from every table's choice.
            change = {"small": {"num_stages": 5}}
            chosen, ops = plan(shape, device="cuda", arch="sm_80", tiles=change), None
        with recorded() as seen:
            run_plan(x, chosen, y, ops)
        launched = exactly(seen, chosen.configs())
        yield f"tiles-{form}", dict(x=x, y=y, launched=torch.tensor(launched))


def offsets() -> Iterator[Case]:
    """Members 2^30 elements apart: the third begins beyond 32 bits. Memory that is never touched
    is never allocated."""
    from torch_specgd.triton_kernels import SCHEDULES
    from torch_specgd.triton_kernels.kernels import elementwise, launch
    from torch_specgd.triton_kernels.kernels.launch_small import orthogonalize_small

    memory = torch.empty(2**31 + 2**16, dtype=torch.float16)
    x, y, z, w = (memory.as_strided((3, 16, 32), (2**30, 32, 1), 2**12 * k) for k in range(4))
    x.copy_(torch.randn(x.shape))
    gram = launch.symmetric(x, x)
    q = (gram / 64).contiguous()
    launch.apply(q, x, y)
    orthogonalize_small(x, SCHEDULES["deep"], z)
    w.copy_(x)
    rows = w[:, 0]  # (3, 32), rows 2^30 apart
    elementwise.update([rows], [torch.ones(3, 32)], [1.0], 1.0)
    case = dict(x=x, gram=gram, q=q, y=y, z=z, rows=rows)
    yield "offsets", {k: v.clone() for k, v in case.items()}


# Any strides; and contiguous with sizes that fill whole lines, which takes another way.
SHAPES = {
    "strided": ((5, 7), (1, 17), (33, 130), (130, 33), (1, 1)),
    "flat": ((40, 40), (1, 48), (33, 64), (64, 33), (16, 1)),
}


def fused() -> Iterator[Case]:
    """Momentum, Nesterov and cast; decay and update: many tensors in one launch."""
    from torch_specgd.triton_kernels.kernels import elementwise

    for kind, shapes in SHAPES.items():

        def some(shapes: tuple = shapes, kind: str = kind) -> list[Tensor]:
            if kind == "flat":
                return [torch.randn(s) for s in shapes]
            return [torch.randn(c, r).T for r, c in shapes]

        for nesterov in (False, True):
            grads = some()
            buffers = [torch.randn(s) for s in shapes]
            outs = [torch.empty(s, dtype=torch.float16) for s in shapes]
            old = [b.clone() for b in buffers]
            elementwise.momentum(grads, buffers, outs, 0.9, nesterov)
            for i in range(len(shapes)):
                case = dict(g=grads[i], old=old[i], new=buffers[i], out=outs[i])
                yield f"momentum-{kind}-{nesterov}-{i}", case
        weights = some()
        before = [w.clone() for w in weights]
        o = [torch.randn(s) for s in shapes]
        scales = torch.rand(len(shapes)).tolist()
        elementwise.update(weights, o, scales, 0.3, 0.5)
        for i in range(len(shapes)):
            case = dict(before=before[i], after=weights[i], o=o[i], scale=torch.tensor(scales[i]))
            yield f"update-{kind}-{i}", case


def steps() -> Iterator[Case]:
    """Both halves of an optimizer step, in one launch each and as torch does them."""
    from torch_specgd.triton_kernels import momentum_step, weight_step

    # The fourth is a rank's piece of a sharded convolution, and empty.
    shapes = ((5, 7), (4, 3, 2, 2), (40, 40), (0, 1, 9), (2, 1, 9))
    for nesterov in (False, True):
        for mu in (0.9, torch.tensor(0.9)):
            grads = [torch.randn(s) for s in shapes]
            grads[0] = torch.randn(7, 5).T
            old = [torch.randn(s) for s in shapes]
            found = []
            for fused in (True, False):
                buffers = [b.clone() for b in old]
                outs = [torch.empty(s, dtype=torch.float16) for s in shapes]
                momentum_step(grads, buffers, outs, mu, nesterov=nesterov, fused=fused)
                found.append((buffers, outs))
            for i, (b, o, c, p) in enumerate(zip(*found[0], *found[1], strict=True)):
                name = f"momentum_step-{nesterov}-{isinstance(mu, Tensor)}-{i}"
                yield name, dict(fused=b, fused_out=o, plain=c, plain_out=p, g=grads[i], old=old[i])
    for lr in (0.3, torch.tensor(0.3)):
        before = [torch.randn(s) for s in shapes]
        o = [torch.randn(s).half() for s in shapes]
        o[2] = o[2].T
        scales = [1.0, 0.5, 2.0, 1.0, 3.0]
        found = []
        for fused in (True, False):
            weights = [w.clone() for w in before]
            weight_step(weights, o, scales, lr, 0.1, fused=fused)
            found.append(weights)
        for i, (a, b) in enumerate(zip(*found, strict=True)):
            case = dict(fused=a, plain=b, before=before[i], o=o[i], scale=torch.tensor(scales[i]))
            yield f"weight_step-{isinstance(lr, Tensor)}-{i}", case


def empty() -> Iterator[Case]:
    """Batches of no matrices, and lists of tensors without elements."""
    from torch_specgd.triton_kernels import SCHEDULES, momentum_step, weight_step
    from torch_specgd.triton_kernels.kernels import launch
    from torch_specgd.triton_kernels.kernels.launch_small import orthogonalize_small

    x = torch.empty(0, 20, 30)
    gram = launch.symmetric(x, x)
    found = [gram, launch.apply(gram, x), orthogonalize_small(x, SCHEDULES["deep"])]
    none = [torch.empty(0, 4), torch.empty(3, 0)]
    momentum_step(none, none, none, 0.9, fused=True)
    weight_step(none, none, [1.0, 1.0], 0.1, fused=True)
    yield "empty", {str(i): x for i, x in enumerate(found)}


def bfloat16() -> Iterator[Case]:
    """Products and whole orthogonalizations in bfloat16, and the same as the tests emulate it."""
    from reference.bfloat16 import multiplied_bfloat16
    from reference.rounded import MirroredProducts, RoundedProducts
    from torch_specgd.triton_kernels import plan
    from torch_specgd.triton_kernels.iterate.run import run_plan
    from torch_specgd.triton_kernels.kernels.launch import TritonProducts

    with multiplied_bfloat16():
        for n, k in SIZES:
            x, c = (torch.randn(2, n, m).to(torch.bfloat16) for m in (k, n))
            c = c + c.mT
            case = {}
            for name, ops in (("kernel", TritonProducts()), ("rounded", RoundedProducts())):
                gram = ops.gram(x, 0.5)
                case[f"gram {name}"] = gram
                case[f"sum {name}"] = ops.symmetric(gram, gram, c, 0.01, 0.25, 3.0)
                case[f"applied {name}"] = ops.apply(gram, x)
            yield f"bfloat16-{n}x{k}", case
        for label, x in (("plain", torch.randn(2, 33, 130)), ("flat", torch.eye(40, 70)[None])):
            chosen = plan(x.shape, form="direct", arithmetic=torch.bfloat16)
            kernel, emulated = torch.empty_like(x), torch.empty_like(x)
            run_plan(x, chosen, kernel, TritonProducts())
            run_plan(x, chosen, emulated, MirroredProducts())
            yield f"bfloat16-{label}", dict(x=x, kernel=kernel, emulated=emulated)


def checks() -> Iterator[Case]:
    """What the first launch of each kernel on a GPU is judged by."""
    from reference.bfloat16 import multiplied_bfloat16
    from torch_specgd.triton_kernels import plan
    from torch_specgd.triton_kernels.kernels.available import CHECKS

    device = torch.device("cpu")
    configs = {"elementwise": {}}
    for shape in ((300, 600), (16, 50)):
        configs |= plan(shape, batch=40, device="cuda", arch="sm_80").configs()
    configs["long"] = configs["small"]
    with multiplied_bfloat16():
        found = {kind: torch.tensor(CHECKS[kind](c, device)) for kind, c in configs.items()}
    assert found.keys() == CHECKS.keys()
    for dtype in (torch.bfloat16, torch.float16):
        found[f"elementwise {dtype}"] = torch.tensor(
            CHECKS["elementwise"]({"dtype": dtype}, device)
        )
    yield "checks", found


def faults() -> Iterator[Case]:
    """Kernels that touch what is not theirs, and whether the memory checker says so."""
    from reference.accesses import ForeignAccess, watched
    from reference.faulty_kernels import beyond_kernel, shift_kernel, twice_kernel

    row, spaced = torch.zeros(9), torch.zeros(9, 2)[:, 0]
    for name, kernel, x, programs in (
        ("beyond", beyond_kernel, row, 1),
        ("between", beyond_kernel, spaced, 1),  # the elements of a view lie further apart
        ("twice", twice_kernel, row, 2),
        ("shift", shift_kernel, row, 2),
    ):
        own = SimpleNamespace(kernel=kernel)
        said = ""
        with watched([(own, "kernel")]):
            try:
                own.kernel[(programs,)](x, torch.zeros(9), 9, BLOCK=8 if programs > 1 else 16)
            except (InterpreterError, ForeignAccess) as error:
                said = str(error)
        yield f"fault-{name}", dict(said=torch.tensor(list(said.encode())))


def main() -> None:
    """Run all cases, look at every access, and save them to the file on the command line."""
    from reference.accesses import watched

    torch.manual_seed(0)
    torch.set_num_threads(1)
    parts = (
        products,
        descriptors,
        small,
        long,
        whole,
        roots,
        tiles,
        offsets,
        fused,
        steps,
        empty,
        bfloat16,
        checks,
    )
    with watched() as seen:
        cases = {name: case for part in parts for name, case in part()}
    launches = {name: torch.tensor(count) for name, count in seen.launches.items()}
    touched = dict(loads=torch.tensor(seen.loads), stores=torch.tensor(seen.stores))
    torch.save({**cases, **dict(faults()), "accesses": launches | touched}, sys.argv[1])


if __name__ == "__main__":
    main()
