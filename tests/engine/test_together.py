"""Several batches in one call: the results of one call each."""

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from torch_specgd.triton_kernels import engine, orthogonalize, orthogonalize_together, plan

# Factors of one rank and several lengths, of another rank, and matrices that are no factors.
SHAPES = ((5, 16, 100), (3, 70, 16), (2, 16, 16), (4, 8, 100), (1, 100, 8), (2, 70, 90))


def both_ways(xs: list[Tensor], **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    alone = [orthogonalize(x, **options) for x in xs]
    outs = [torch.empty(x.shape, dtype=x.dtype) for x in xs]  # row-major, whatever x is
    before = [x.clone() for x in xs]
    orthogonalize_together(xs, outs, **options)
    for x, y in zip(xs, before, strict=True):
        assert torch.equal(x.nan_to_num(7), y.nan_to_num(7))
    return alone, outs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "auto", "dtype": torch.float32, "eps": 1e-7},
        {"method": "newton_schulz", "schedule": "polar_express"},
        {"method": "svd"},
        {"accuracy": "high"},
    ],
)
def test_results_are_those_of_one_call_each(options: dict[str, Any]) -> None:
    xs = [torch.randn(s) * 10.0**i for i, s in enumerate(SHAPES)]
    for a, b in zip(*both_ways(xs, **options), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


def test_factors_of_one_rank_share_their_iteration() -> None:
    """That is what it is for: 5 + 3 matrices of rank 16 in one run, 4 + 1 of rank 8 in another."""
    shared = []

    def recording(pairs: Any, schedule: Any) -> None:
        shared.append([x.shape for x, _ in pairs])
        share(pairs, schedule)

    share = engine.run_together
    with mock.patch.object(engine, "run_together", recording):
        both_ways([torch.randn(s) for s in SHAPES])
    assert shared == [[SHAPES[0], SHAPES[1]], [SHAPES[3], SHAPES[4]]]


def test_others_do_not_share() -> None:
    """Large matrices would need all their Gram matrices at once; a restart needs X midway."""
    with mock.patch.object(engine, "run_together", side_effect=AssertionError):
        large = [torch.randn(3, 70, 400), torch.randn(2, 70, 500)]
        small = [torch.randn(3, 16, 400), torch.randn(2, 16, 500)]
        carried = plan((70, 400), form="gram", arithmetic=torch.float32)
        restarted = plan((16, 400), form="gram", restarts=[1])
        for xs, chosen in ((large, carried), (small, restarted)):
            with mock.patch.object(engine, "choose_plan", return_value=chosen):
                both_ways(xs)
        with pytest.raises(ValueError, match="eps must be positive"):
            both_ways(small, eps=0.0)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, float("nan"), float("inf")])
def test_a_member_out_of_range_leaves_the_others_as_they_are(value: float) -> None:
    """A dead adapter, or a broken one, beside healthy ones."""
    xs = [torch.randn(s) for s in SHAPES[:2]]
    xs[1][1] = torch.randn(70, 16) * value
    for a, b in zip(*both_ways(xs), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    for a, b in zip(*both_ways([torch.randn(s).to(dtype) for s in SHAPES]), strict=True):
        assert torch.equal(a, b)


def test_strided_inputs_and_results_in_place() -> None:
    xs = [torch.randn(5, 100, 16).mT, torch.randn(6, 16, 100)[::2]]
    for a, b in zip(*both_ways(xs), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    places = [torch.randn(s) for s in SHAPES]
    alone = [orthogonalize(x) for x in places]
    orthogonalize_together(places, places)
    for a, b in zip(alone, places, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


def test_bad_input_is_refused_by_the_checks_of_one_call() -> None:
    xs = [torch.randn(s) for s in SHAPES[:2]]
    with pytest.raises(ValueError, match="out must have x's shape"):
        orthogonalize_together(xs, [torch.empty(5, 16, 100), torch.empty(3, 71, 16)])
    with pytest.raises(ValueError, match="shares memory"):
        orthogonalize_together([xs[0][:2], xs[0][2:4]], [xs[0][1:3], torch.empty(2, 16, 100)])
    with pytest.raises(ValueError, match="method must be one of"):
        orthogonalize_together(xs, xs, method="qr")


def test_tensors_without_data_pass_through() -> None:
    with FakeTensorMode():
        xs = [torch.empty(s) for s in SHAPES]
        outs = [torch.empty_like(x) for x in xs]
        orthogonalize_together(xs, outs)
    assert [type(out) for out in outs] == [FakeTensor] * len(xs)
    assert [out.shape for out in outs] == [x.shape for x in xs]
