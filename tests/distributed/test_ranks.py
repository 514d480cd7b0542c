"""Muon and SpecGD on 2 and on 4 processes equal the unsharded run; each check was run there.

The processes are started once; a test reads what its check found, on every rank.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rank_checkpoints
import rank_checks
import rank_models
import rank_runs
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

# float32, as promised. What was measured is 0.0 wherever gradients are the same to the last bit
# and no reduction crosses ranks.
TOLERANCE = 1e-6

Read = Callable[[str], list[Any]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="session")
def results(folder: Path) -> Read:
    """Both groups of processes at once: most of their time is the import of torch."""
    groups = [
        mp.spawn(rank_checks.work, (world, str(folder)), nprocs=world, join=False)
        for world in (2, 4)
    ]
    for group in groups:
        while not group.join():
            pass
    found = {
        world: [torch.load(folder / f"results-{world}-{rank}") for rank in range(world)]
        for world in (2, 4)
    }

    def read(name: str) -> list[Any]:
        values = [ranks[name] for ranks in found.values() for ranks in ranks if name in ranks]
        assert values, f"no rank ran {name}"
        for value in values:
            assert not str(value).startswith("Traceback"), value
        return values

    return read


def largest(value: Any) -> float:
    return max(value.values()) if isinstance(value, dict) else float(value)


@pytest.mark.parametrize(
    "check",
    [
        "shard_rows",
        "shard_columns",
        "replicated",
        "mixed_kinds",
        "hsdp",
        "rows_and_columns",
        "columns_and_experts",
        "rows_twice",
        "replicated_inside",
        "partial_gradient",
        "fsdp_training",
        "hsdp_training",
        "light_state",
    ],
)
def test_equals_the_unsharded_run(results: Read, check: str) -> None:
    """A model trained on several ranks would silently differ from the same run on one."""
    assert max(map(largest, results(check))) <= TOLERANCE


def test_compiled_step_equals_that_of_one_process(results: Read) -> None:
    """The compiler may round in another order than the plain step, but as finely."""
    for found in results("compiled_step"):
        assert found["to one process"] <= TOLERANCE
        # torch 2.9 traces lerp as a product and a sum: that moves the momentum by single roundings,
        # which the polar factor enlarges, in the plain run as well.
        assert found["error"] <= max(TOLERANCE, 2 * found["error of the plain step"])


def test_bfloat16_weights_differ_by_rounding_only(results: Read) -> None:
    """Sharding must not cost a low-precision run more than what rounding does anyway."""
    # torch rounds the tail of a bfloat16 addition on CPU in another way than its vectorized part,
    # and pieces have other tails: one unit (2^-7 of the value at most) in each of three steps.
    assert max(results("bfloat16")) <= 3 * 2**-7


def test_tensor_parallelism_inside_fsdp(results: Read) -> None:
    """Strided shards, which a plain concatenation of pieces would put in the wrong order."""
    for strided, difference in results("tensor_parallel_and_fsdp"):
        assert strided
        assert difference <= TOLERANCE


@pytest.mark.parametrize(("check", "world"), [("each_matrix_once", 2), ("hsdp_owners", 4)])
def test_every_matrix_has_one_owner(results: Read, check: str, world: int) -> None:
    """Work done twice, or by one rank for all, is what the scheme exists to avoid."""
    matrices = sum(len(s) in (2, 4) for s in rank_runs.SHAPES)
    for counts in results(check):
        assert sum(counts) == matrices
        assert len(counts) == world
        assert min(counts) >= 1


def test_experts_are_orthogonalized_where_they_lie(results: Read) -> None:
    """An expert-parallel stack would otherwise cross the network in every step."""
    for sent, difference in results("experts_stay"):
        assert sent == 0
        assert difference <= TOLERANCE


def test_ddp_shares_the_work(results: Read) -> None:
    """Replicas that differ in one bit drift apart, and nothing would bring them together."""
    for found in results("ddp_share_work"):
        assert found["difference"] <= TOLERANCE
        assert largest(found["whole optimizers"]) <= TOLERANCE
        assert found["same bits"]
        matrices = found["without"][0]
        assert found["without"] == [matrices, matrices]
        assert sum(found["matrices"]) == matrices
        assert min(found["matrices"]) >= 1


def test_unsupported_layouts_are_named(results: Read) -> None:
    """Partial sums taken for weights would train a wrong model without a word."""
    for messages in results("refusals"):
        for kind in ("Muon", "SpecGD"):
            assert "parameter 'partial' of shape (4, 2)" in messages[f"partial-{kind}"]
            assert "has placement P" in messages[f"partial-{kind}"]
            assert "[1, 0]" in messages[f"backwards-{kind}"]
        assert "is a plain tensor, but its gradient is a DTensor" in messages["kinds"]


def test_state_is_alike_on_all_ranks(results: Read) -> None:
    """Distributed checkpoints need the same keys everywhere, and DTensors for DTensors."""
    assert results("state") == [(True, True)] * 2


def test_state_dict_of_dtensors_reloads(results: Read) -> None:
    """Accelerate reloads the state dict of every optimizer that it prepares."""
    for found in results("reload"):
        assert found["difference"] == 0.0
        assert not found["shared"]
        assert found["dtypes"] == ["torch.float32"]


def test_unused_parameter_keeps_exchanges_in_step(results: Read) -> None:
    """A layer that was not called must not shift the others' matrices."""
    for untouched, difference in results("unused_parameter"):
        assert untouched
        assert difference <= TOLERANCE


def test_state_dict_of_fresh_optimizer_changes_nothing(results: Read) -> None:
    """Saving before the first step must not move a weight, not by one bit."""
    assert results("fresh_state_dict") == [True, True]


def test_checkpoint_resumes_on_two_ranks(results: Read) -> None:
    """A run that was stopped goes on as if it had not been, in both layouts of the state."""
    for found in results("checkpoint"):
        assert set(found) == {False, True}
        assert largest(found) == 0.0


def test_list_of_optimizers_shares_a_checkpoint(results: Read) -> None:
    """Whoever keeps two optimizers saves them in one call, in both layouts of the state."""
    for found in results("two_optimizers"):
        assert set(found) == {False, True}
        assert largest(found) == 0.0


def test_mixed_precision_with_clipping_trains(results: Read) -> None:
    """FSDP2 computes in bfloat16 and clips DTensors; weights and state stay float32."""
    for first, last, dtypes in results("mixed_precision"):
        assert last < 0.9 * first
        assert dtypes == {"torch.float32"}


def test_cpu_offload_takes_the_same_steps(results: Read) -> None:
    """FSDP2 with CPUOffloadPolicy: the optimizer works where the weights are kept."""
    for found in results("cpu_offload"):
        assert found["difference"] <= TOLERANCE
        assert found["devices"] == {"cpu"}


def test_qk_clip_joins_the_ranks_maxima(results: Read) -> None:
    """Each rank sees a share of the batch; replicas and shards must take one factor."""
    for found in results("qk_clip"):
        assert found["clipped"] > 0
        assert max(found["weights"], found["gamma"]) <= TOLERANCE


def test_statistics_are_of_the_whole_weights(results: Read) -> None:
    """Sums over one rank's pieces would be other numbers on every rank, and on every layout."""
    for plain, sharded in results("statistics"):
        # A step is the difference of float32 weights some thirty times its size.
        assert sharded == pytest.approx(plain, rel=1e-5, abs=1e-5)
        assert plain["update_norm"] > 0


def test_float32_state_of_bfloat16_weights_survives(results: Read) -> None:
    """Rounded to bfloat16, a slow momentum forgets what it has gathered."""
    for found in results("bfloat16_checkpoint"):
        assert found == {"equal": True, "float32": True, "needed": True}


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def resume_here(model: torch.nn.Module, folder: Path, flat: bool) -> float:
    """Loads what two ranks saved, goes on for three steps, and compares."""
    optimizer = rank_models.muon_of(model)
    path = folder / f"two-ranks-flat-{flat}"
    rank_checkpoints.load(model, optimizer, path, flat)
    rank_models.train(model, optimizer, range(3, 6))
    straight = torch.load(folder / f"straight-{flat}-0")
    return rank_runs.largest_difference(model.parameters(), straight)


@pytest.mark.parametrize("flat", [False, True])
def test_checkpoint_of_two_ranks_resumes_on_one(
    results: Read, folder: Path, alone: None, flat: bool
) -> None:
    """A checkpoint is not tied to the number of ranks that wrote it."""
    results("checkpoint")
    model = rank_models.sharded_net(init_device_mesh("cpu", (1,)))
    assert resume_here(model, folder, flat) <= TOLERANCE


# Said by torch whenever it loads without a process group, which is what this test is about.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("flat", [False, True])
def test_checkpoint_of_two_ranks_resumes_unsharded(results: Read, folder: Path, flat: bool) -> None:
    """What a cluster has trained is continued on a laptop, without a process group."""
    results("checkpoint")
    assert resume_here(rank_models.net(), folder, flat) <= TOLERANCE


def test_a_gradient_missing_on_one_rank_never_hangs(results: Read) -> None:
    """Every rank ends with the same error, by name, or with the same zeros."""
    for outcome in results("gradient_missing_on_one_rank"):
        for kind in ("Muon", "SpecGD"):
            assert "only some have one of a parameter of shape (4, 3)" in outcome[f"{kind} True"]
            assert outcome[f"{kind} zeros"] == ([False, True], True)
