"""Muon under FSDP2, with checkpoints that load on any number of ranks.

    torchrun --standalone --nproc_per_node 2 examples/torchrun_fsdp2.py --save CHECKPOINT
    torchrun --standalone --nproc_per_node 1 examples/torchrun_fsdp2.py --load CHECKPOINT

Nothing about ranks is said to the optimizer: it reads from each weight how it is spread, brings
every matrix to one rank to be orthogonalized whole, and takes the step that one process takes.
"""

import argparse

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from real_data import load
from torch_specgd import Muon


def sharded_net(device: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 65), nn.ReLU()),
        nn.Linear(65, 10),
    ).to(device)
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for block in model:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def batches(x: Tensor, y: Tensor, size: int, steps: range) -> list[tuple[Tensor, Tensor]]:
    """This rank's share of the same global batches, whatever the number of ranks."""
    rank, world = dist.get_rank(), dist.get_world_size()
    result = []
    for step in steps:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(step))[:size]
        result.append((x[order[rank::world]], y[order[rank::world]]))
    return result


def save(model: nn.Module, optimizer: Muon, path: str) -> None:
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=path)


def resume(model: nn.Module, optimizer: Muon, path: str) -> None:
    weights, state = get_state_dict(model, optimizer)
    content = {"model": weights, "optimizer": state}
    dcp.load(content, checkpoint_id=path)
    set_state_dict(
        model, optimizer, model_state_dict=content["model"], optim_state_dict=content["optimizer"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", metavar="FOLDER", help="write a checkpoint at the end")
    parser.add_argument("--load", metavar="FOLDER", help="go on from a checkpoint")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    if not dist.is_torchelastic_launched():
        raise SystemExit("start it with " + __doc__.splitlines()[2].strip())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank())

    model = sharded_net(device)
    optimizer = Muon(model, lr=5e-3, adjust_lr_fn="match_rms_adamw")
    if args.load:
        resume(model, optimizer, args.load)
    data = load("digits")
    losses = []
    # A real run saves its step with the checkpoint; here the second part has its own batches.
    first = args.steps if args.load else 0
    for x, y in batches(data.train_x, data.train_y, 128, range(first, first + args.steps)):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    if args.save:
        save(model, optimizer, args.save)

    mean = torch.stack(losses)
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    model.eval()
    with torch.no_grad():
        hits = (model(data.test_x.to(device)).argmax(1).cpu() == data.test_y).float().mean()
    if dist.get_rank() == 0:
        print(f"loss: {mean[:5].mean():.3f} -> {mean[-5:].mean():.3f}, test accuracy {hits:.3f}")
    dist.barrier()  # a rank that leaves early takes its sockets from the others' last exchange
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
