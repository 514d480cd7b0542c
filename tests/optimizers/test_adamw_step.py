"""AdamW's step as a function of tensors, against torch's own in float64 and to the last bit."""

import pytest
import torch
from torch import Tensor

from torch_specgd.step.adamw import adamw_step
from torch_specgd.triton_kernels.random_bits import RandomBits

OPTIONS = {"lr": 0.125, "betas": (0.75, 0.5), "eps": 1e-3, "weight_decay": 0.5}
SHAPES = ((3, 4), (), (5,))


def start(weight: torch.dtype, state: torch.dtype, scale: float = 1.0) -> list[list[Tensor]]:
    """Return weights, gradients, means, mean squares and counts in the middle of a run."""
    g = torch.Generator().manual_seed(0)
    draws = [[torch.randn(shape, generator=g) * scale for shape in SHAPES] for _ in range(4)]
    params, grads = ([x.to(weight) for x in some] for some in draws[:2])
    averages, squares = [x.to(state) for x in draws[2]], [x.square().to(state) for x in draws[3]]
    return [params, grads, averages, squares, [torch.tensor(3.0) for _ in SHAPES]]


def expected(lists: list[list[Tensor]], sign: float = 1.0) -> list[list[Tensor]]:
    """Return weights and state after one step, by the formulas in float64."""
    lr, (b1, b2), eps, decay = (OPTIONS[k] for k in ("lr", "betas", "eps", "weight_decay"))
    params, averages, squares = [], [], []
    for w, g, m, v in zip(*([x.double() for x in some] for some in lists[:4]), strict=True):
        g = sign * g
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        root = (v / (1 - b2**4)).sqrt() + eps
        params.append(w * (1 - lr * decay) - lr * (m / (1 - b1**4)) / root)
        averages.append(m)
        squares.append(v)
    return [params, averages, squares]


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("maximize", [None, False, True])
@pytest.mark.parametrize("of_tensor", [False, True])
@pytest.mark.parametrize(
    ("weight", "state"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_step_is_that_of_the_formula(weight, state, of_tensor, maximize, foreach) -> None:
    """Embeddings, heads and norms take this step: weights and state wherever they are narrow."""
    lists = start(weight, state)
    kept = [[x.clone() for x in some] for some in lists]
    options = {} if maximize is None else {"maximize": maximize}
    lr = torch.tensor(OPTIONS["lr"], dtype=torch.float64) if of_tensor else OPTIONS["lr"]
    random = torch.get_rng_state()
    adamw_step(*lists, **OPTIONS | {"lr": lr}, foreach=foreach, **options)
    wanted = expected(kept, sign=-1.0 if maximize else 1.0)
    for ours, values in zip((lists[0], lists[2], lists[3]), wanted, strict=True):
        for x, y in zip(ours, values, strict=True):
            # All in bfloat16, each of a handful of operations rounds to its eight bits.
            narrow = weight == state == torch.bfloat16
            eps = torch.finfo(x.dtype).eps * (8 if narrow else 1)
            torch.testing.assert_close(x.double(), y, rtol=8 * eps, atol=2 * eps)
    assert all(torch.equal(a, b) for a, b in zip(lists[1], kept[1], strict=True))
    assert [float(count) for count in lists[4]] == [4.0] * len(SHAPES)
    assert torch.equal(torch.get_rng_state(), random)


def test_pieces_of_narrow_weights_step_as_the_whole() -> None:
    """Ranks hold pieces: where their ends lie decides no bit, beside other dtypes or alone."""
    g = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, 43, generator=g)
    for dtypes in ((torch.bfloat16,), (torch.bfloat16, torch.float32)):
        whole = [[x.to(dtype) for dtype in dtypes] for x in (*drawn[:3], drawn[3].square())]
        cut = [[part.clone() for x in xs for part in x.split([5, 17, 21])] for xs in whole]
        for lists in (whole, cut):
            adamw_step(*lists, [torch.tensor(3.0) for _ in lists[0]], **OPTIONS)
        for xs, parts in zip(whole, cut, strict=True):
            found, expected = (torch.cat([x.float() for x in some]) for some in (parts, xs))
            assert torch.equal(found, expected)


def test_rounding_of_the_state_is_right_on_average() -> None:
    """Narrow state that rounds to nearest would stand still where gradients are small."""
    n = 20_000
    zeros = {"lr": 0.0, "betas": (0.875, 0.875), "eps": 1e-8, "weight_decay": 0.0}
    for weight in (torch.bfloat16, torch.float32):
        params, grads = [torch.ones(n, dtype=weight)], [torch.full((n,), 1.0625, dtype=weight)]
        averages, squares = ([torch.ones(n, dtype=torch.bfloat16)] for _ in range(2))
        rounding, counts = RandomBits(torch.tensor(0)), [torch.tensor(1.0)]
        adamw_step(params, grads, averages, squares, counts, **zeros, rounding=rounding)
        # 1 + 1 / 128 is the next number, and exact; the mean square lies between two.
        assert averages[0].unique().tolist() == [1.0078125]
        assert squares[0].unique().tolist() == [1.015625, 1.0234375]
        share = (1 + (1.0625**2 - 1) / 8 - 1.015625) * 128
        up = (squares[0] == 1.0234375).double().mean()
        assert float(up) == pytest.approx(share, abs=5 * 0.5 / n**0.5)
        assert params[0].dtype == weight
        assert params[0].unique().tolist() == [1.0]
