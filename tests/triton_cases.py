"""Runs the Triton kernels in the interpreter and saves what they return; see test_triton_values.

A program of its own, because TRITON_INTERPRET must be set before the kernels are decorated,
and a process in which they are interpreted cannot compile them.
"""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

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
                d, e = launch.symmetric(x, x, c, (0.5, 0.25, 3.0), (1.0, -1.0, 0.5))
                gram = launch.symmetric(x, x)[0]
                q = (gram / gram.float().norm()).to(dtype)
                y = launch.apply(q, x, torch.tensor([0.5, 2.0]), c=x)
                name = f"product-{dtype}-{n}x{k}-{layout}".replace("torch.", "")
                yield name, dict(x=x, c=c, d=d, e=e, gram=gram, q=q, y=y)


def tables() -> Iterator[Case]:
    """Unstacked matrices through a table of addresses: Gram matrices and the weight update."""
    from torch_specgd.triton_kernels.kernels import launch

    weights = [torch.randn(40, 24).T for _ in range(3)]
    before = torch.stack(weights)
    gram = launch.gram_of_table(launch.address_table(weights), weights[0], 3)
    q, x = torch.randn(3, 24, 24), torch.randn(3, 24, 40)
    addresses = launch.address_table(weights)
    launch.apply(q, x, torch.tensor([-0.1, 0.99]), out=weights[0], addresses=addresses)
    yield "table", dict(before=before, gram=gram, q=q, x=x, after=torch.stack(weights))


def small() -> Iterator[Case]:
    """Whole orthogonalizations in one launch, at scales and ranks that break naive sums."""
    from torch_specgd.triton_kernels import SCHEDULES
    from torch_specgd.triton_kernels.kernels.small import orthogonalize_small

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


def whole() -> Iterator[Case]:
    """The iteration over the Triton products, both forms, against the plain ones."""
    from torch_specgd.triton_kernels import SCHEDULES
    from torch_specgd.triton_kernels.iteration import direct, gram
    from torch_specgd.triton_kernels.kernels.launch import TritonProducts
    from torch_specgd.triton_kernels.normalize import begin

    x = torch.randn(2, 33, 70)
    ops = TritonProducts(x.device)
    for dtype in (torch.float32, torch.float16):
        for name in ("deep", "flat", "jordan"):
            schedule = SCHEDULES[name]
            y = direct(begin(x, dtype, schedule.normalization, ops), schedule, ops)
            z = gram(begin(x, dtype, schedule.normalization, ops), schedule, ops, (1, 2))
            yield f"whole-{dtype}-{name}".replace("torch.", ""), dict(x=x, direct=y, gram=z)


def fused() -> Iterator[Case]:
    """Momentum, Nesterov, cast and norms; decay and update: many tensors, any strides."""
    from torch_specgd.triton_kernels.kernels import elementwise

    shapes = ((5, 7), (3, 9), (40, 40), (1, 1))
    for nesterov in (False, True):
        grads = [torch.randn(c, r).T for r, c in shapes]
        buffers = [torch.randn(s) for s in shapes]
        outs = [torch.empty(s, dtype=torch.float16) for s in shapes]
        old = [b.clone() for b in buffers]
        squares = elementwise.momentum(grads, buffers, outs, 0.9, nesterov)
        for i in range(len(shapes)):
            case = dict(g=grads[i], old=old[i], new=buffers[i], out=outs[i], square=squares[i])
            yield f"momentum-{nesterov}-{i}", case
    weights = [torch.randn(c, r).T for r, c in shapes]
    before = [w.clone() for w in weights]
    o = [torch.randn(s) for s in shapes]
    decay, rate = torch.rand(len(shapes)), torch.rand(len(shapes))
    elementwise.update(weights, o, decay, rate)
    for i in range(len(shapes)):
        case = dict(before=before[i], after=weights[i], o=o[i], decay=decay[i], rate=rate[i])
        yield f"update-{i}", case


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


def main() -> None:
    """Run all cases and save them to the file named on the command line."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    parts = (products, tables, small, whole, fused, steps)
    torch.save({name: case for part in parts for name, case in part()}, sys.argv[1])


if __name__ == "__main__":
    main()
