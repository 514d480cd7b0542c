"""What every rank does in the spawned processes; `test_ranks.py` reads the numbers it returns."""

import copy
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_checkpoints import (
    check_bfloat16_checkpoint,
    check_checkpoint,
    check_fresh_state_dict,
    check_reload,
    check_state,
    check_two_optimizers,
)
from rank_layouts import (
    check_bfloat16,
    check_columns_and_experts,
    check_each_matrix_once,
    check_experts_stay,
    check_hsdp,
    check_hsdp_owners,
    check_light_state,
    check_mixed_kinds,
    check_partial_gradient,
    check_refusals,
    check_replicated,
    check_replicated_inside,
    check_rows_and_columns,
    check_rows_twice,
    check_shard_columns,
    check_shard_rows,
    check_tensor_parallel_and_fsdp,
)
from rank_training import (
    check_compiled_step,
    check_cpu_offload,
    check_ddp_share_work,
    check_fsdp_training,
    check_gradient_missing_on_one_rank,
    check_hsdp_training,
    check_mixed_precision,
    check_qk_clip,
    check_statistics,
    check_unused_parameter,
)
from torch.distributed.device_mesh import init_device_mesh

from ranks import leave

TWO = [
    check_shard_rows, check_shard_columns, check_replicated, check_mixed_kinds, check_bfloat16,
    check_each_matrix_once, check_experts_stay, check_partial_gradient, check_refusals,
    check_state, check_reload, check_unused_parameter, check_fsdp_training, check_ddp_share_work,
    check_compiled_step, check_fresh_state_dict, check_checkpoint, check_bfloat16_checkpoint,
    check_mixed_precision, check_two_optimizers, check_gradient_missing_on_one_rank,
    check_light_state, check_statistics, check_cpu_offload,
    check_qk_clip,
]  # fmt: skip
FOUR = [
    check_hsdp, check_hsdp_owners, check_hsdp_training, check_rows_and_columns,
    check_columns_and_experts, check_rows_twice, check_replicated_inside,
    check_tensor_parallel_and_fsdp, check_statistics,
]  # fmt: skip


def work(rank: int, world: int, folder: str) -> None:
    """Runs every check and writes its result, or its traceback, to a file of this rank."""
    torch.set_num_threads(1)
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("error", category)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store-{world}",
        rank=rank,
        world_size=world,
        timeout=timedelta(minutes=5),  # a busy machine needs one to import torch six times
    )
    if world == 2:
        mesh, checks = init_device_mesh("cpu", (2,)), TWO
    else:
        mesh, checks = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b")), FOUR
    results: dict[str, Any] = {}
    for check in checks:
        name = check.__name__.removeprefix("check_")
        try:
            results[name] = copy.deepcopy(check(mesh, Path(folder)))
        except Exception:
            results[name] = traceback.format_exc()
        torch.save(results, f"{folder}/results-{world}-{rank}")
    leave()
