"""Muon steps on sharded weights: one owner per matrix beside gathering, in one run, interleaved.

    python benchmarks/distributed_step.py                 # 2 gloo ranks, one thread each
    python benchmarks/distributed_step.py --world 4 --width 512 --json -

Every scheme steps the same FSDP2-like weights (Shard(0)) of GPT-2 blocks with the same gradients:

owners        ours: two all-to-all exchanges, each matrix orthogonalized by one rank
gather flat   one all-gather of everything, then every rank orthogonalizes everything
gather each   DTensor.full_tensor() of one matrix at a time, likewise
torch         torch.optim.Muon on the DTensors
unsharded     ours on one rank, while the others idle

"MiB in" is what rank 0 receives in a step. The last column is the largest difference of a weight
to the unsharded step, in units of the largest update; torch.optim.Muon has another schedule and
is compared with its own unsharded step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from torch_specgd import Muon
from torch_specgd.distributed.exchange import all_gather_flat
from torch_specgd.distributed.layout import Layout
from torch_specgd.distributed.orthogonalize import Compute, orthogonalize_distributed
from torch_specgd.step import pieces

received = 0  # bytes that came from other ranks in the step that is being counted


def shapes(width: int, blocks: int) -> list[tuple[int, int]]:
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return block * blocks


def gather_flat(
    updates: Sequence[Tensor], layouts: Sequence[Layout], views: Any, compute: Compute, **_: Any
) -> list[Tensor]:
    """What a ZeRO-style all-gather does: everything to everyone, in one collective."""
    global received
    world, rank = dist.get_world_size(), dist.get_rank()
    flat = torch.cat([u.reshape(-1) for u in updates])
    everything = flat.new_empty(world * len(flat))  # the widths chosen here divide evenly
    all_gather_flat(everything, flat, layouts[0].mesh.get_group()).wait()
    received += (world - 1) * flat.numel() * flat.element_size()
    parts = everything.view(world, -1).split([u.numel() for u in updates], dim=1)
    whole = [p.reshape(x.shape) for p, x in zip(parts, layouts, strict=True)]
    done = compute(whole, list(range(len(whole))))
    return [o.chunk(world)[rank] for o in done]


def gather_each(
    updates: Sequence[Tensor], layouts: Sequence[Layout], views: Any, compute: Compute, **_: Any
) -> list[Tensor]:
    """What a few lines of DTensor do: full_tensor(), orthogonalize, keep one's own rows."""
    global received
    world, rank = dist.get_world_size(), dist.get_rank()
    result = []
    for i, (u, x) in enumerate(zip(updates, layouts, strict=True)):
        whole = DTensor.from_local(u, x.mesh, x.placements, run_check=False).full_tensor()
        received += (whole.numel() - u.numel()) * u.element_size()
        result.append(compute([whole], [i])[0].chunk(world)[rank])
    return result


def counting(
    buffer: Tensor, flat: Tensor, sizes: list[int], splits: list[int], **options: Any
) -> Any:
    global received
    received += (sum(sizes) - sizes[dist.get_rank()]) * flat.element_size()
    return all_to_all_single(buffer, flat, sizes, splits, **options)


all_to_all_single = dist.all_to_all_single


def stepper(scheme: str, place: Callable[[Tensor], Tensor], grads: list[Tensor]) -> Any:
    """The weights of a scheme and a function that steps them."""
    params = [nn.Parameter(place(torch.zeros_like(g))) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = place(g)
    kind = torch.optim.Muon if scheme == "torch" else Muon
    optimizer = kind(params, lr=0.01, weight_decay=0.0)
    way = {"gather flat": gather_flat, "gather each": gather_each}.get(
        scheme, orthogonalize_distributed
    )

    def step() -> None:
        with mock.patch.object(pieces, "orthogonalize_distributed", way):
            optimizer.step()

    return params, step


def work(rank: int, world: int, folder: str, args: argparse.Namespace) -> None:
    global received
    torch.set_num_threads(args.threads)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    mesh = init_device_mesh("cpu", (world,))
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(s, generator=generator) for s in shapes(args.width, args.blocks)]
    schemes = ["owners", "gather flat", "gather each", *([] if args.no_torch else ["torch"])]
    runs = {s: stepper(s, lambda x: distribute_tensor(x, mesh, [Shard(0)]), grads) for s in schemes}
    alone = {s: stepper(s, lambda x: x.clone(), grads) for s in ("owners", "torch") if s in schemes}
    rows: dict[str, dict[str, Any]] = {s: {"seconds": []} for s in [*schemes, "unsharded"]}
    rows["unsharded"].update(bytes=0, difference=0.0)
    for name, (params, step) in runs.items():  # first steps: warm-up, volume, differences
        received = 0
        with mock.patch.object(dist, "all_to_all_single", counting):
            step()
        rows[name]["bytes"] = None if name == "torch" else received
        reference, unsharded = alone["torch" if name == "torch" else "owners"]
        if not any(bool(q.any()) for q in reference):
            unsharded()
        pairs = [
            (p.detach().full_tensor(), q.detach()) for p, q in zip(params, reference, strict=True)
        ]
        largest = max(float(q.abs().max()) for _, q in pairs)
        rows[name]["difference"] = max(float((p - q).abs().max()) for p, q in pairs) / largest
    for _ in range(args.rounds):
        for name, (_, step) in runs.items():
            dist.barrier()
            start = time.perf_counter()
            step()
            dist.barrier()
            rows[name]["seconds"].append(time.perf_counter() - start)
        start = time.perf_counter()
        if rank == 0:
            alone["owners"][1]()
        rows["unsharded"]["seconds"].append(time.perf_counter() - start)
        dist.barrier()
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def report(rows: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    size = sum(m * n for m, n in shapes(args.width, args.blocks)) * 4 / 2**20
    print(
        f"{args.world} ranks x {args.threads} thread(s), gloo, {platform.processor() or 'cpu'}, "
        f"torch {torch.__version__}; {4 * args.blocks} matrices, width {args.width}, "
        f"{size:.0f} MiB in float32; {args.rounds} interleaved rounds"
    )
    owners = statistics.median(rows["owners"]["seconds"])
    print(
        f"{'scheme':<12} {'median ms':>9} {'min ms':>7} {'x owners':>8} {'MiB in':>7}  difference"
    )
    for name, row in rows.items():
        median, volume = statistics.median(row["seconds"]), row.get("bytes")
        print(
            f"{name:<12} {1e3 * median:>9.1f} {1e3 * min(row['seconds']):>7.1f} "
            f"{median / owners:>8.2f} {'-' if volume is None else f'{volume / 2**20:.1f}':>7}  "
            f"{row['difference']:.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-torch", action="store_true", help="leave torch.optim.Muon out")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers, - for stdout")
    args = parser.parse_args()
    if args.width % args.world:
        parser.error(f"--width {args.width} must be a multiple of --world {args.world}")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (args.world, folder, args), nprocs=args.world)
        rows = json.loads(Path(folder, "rows.json").read_text())
    report(rows, args)
    if args.json:
        text = json.dumps({"arguments": vars(args), "rows": rows}, indent=1)
        sys.stdout.write(text + "\n") if args.json == "-" else Path(args.json).write_text(text)


if __name__ == "__main__":
    main()
