"""Whether somebody divides the order of examples, where several processes train together."""

from __future__ import annotations

import sys

import torch.distributed as dist


def world_size() -> int:
    """Return the number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def divided_by(num_replicas: int | str | None, rank: int | None) -> tuple[int, int] | None:
    """Return the number of ranks and this one's, or None where the order is not divided here."""
    if num_replicas == "auto":
        return (world_size(), dist.get_rank()) if world_size() > 1 else None
    if isinstance(num_replicas, int) and rank is not None:
        return num_replicas, rank
    return None


def accelerate_runs() -> bool:
    """Say whether an Accelerator (of Accelerate or the Trainer) is at work: it divides loaders."""
    state = sys.modules.get("accelerate.state")
    return bool(state is not None and state.AcceleratorState._shared_state)


def check_divided(*, wrapped: bool, here: bool = False) -> None:
    """Refuse an order that every process would go through whole, before a batch is spent.

    Args:
        wrapped: The order is that of a ``ScoredLoader``, which no framework divides.
        here: The sampler divides it itself.

    Raises:
        RuntimeError: If there are several processes and nothing divides the order among them, or
            one of them asks for the order of all.
    """
    world = world_size()
    if world > 1 and accelerate_runs() and _inside_dispatcher():
        raise RuntimeError(
            f"dispatch_batches=True lets one of {world} processes ask for the order, and the "
            "others never learn that an epoch is over: give "
            "DataLoaderConfiguration(dispatch_batches=False) to the Accelerator"
        )
    if world == 1 or here or (not wrapped and accelerate_runs() and not _inside_lightning()):
        return
    if wrapped:
        remedy = "give the loader a torch DistributedSampler before it is wrapped" + (
            "; Accelerate divides index_batches(loader, sampler) instead" * accelerate_runs()
        )
    elif _inside_lightning():
        remedy = (
            "Lightning's own division keeps the length of the first epoch for ever: give "
            "use_distributed_sampler=False to the Trainer, and num_replicas='auto' to the sampler"
        )
    else:
        remedy = "give num_replicas='auto' to the sampler"
    raise RuntimeError(
        f"{world} processes would each go through all examples: {remedy} (num_replicas=1, rank=0 "
        "if you divide the order yourself)"
    )


def _inside_lightning() -> bool:
    """Say whether the order is being read by Lightning's wrapper of samplers."""
    return _inside("fabric.utilities.distributed", depth=5)


def _inside_dispatcher() -> bool:
    """Say whether the order is being read by Accelerate for all ranks at once."""
    return _inside("accelerate.data_loader", "DataLoaderDispatcher")


def _inside(module: str, owner: str | None = None, depth: int = 20) -> bool:
    """Say whether a function of a module, or of one class in it, is waiting for this call.

    Args:
        module: How the module's name ends.
        owner: Name of the class of the object whose method it is; None for any function.
        depth: Number of callers that are looked at.
    """
    frame = sys._getframe(1)
    for _ in range(depth):
        if frame.f_back is None:
            return False
        frame = frame.f_back
        if frame.f_globals.get("__name__", "").endswith(module) and (
            owner is None or type(frame.f_locals.get("self")).__name__ == owner
        ):
            return True
    return False
