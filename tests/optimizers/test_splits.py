"""Weights that hold several matrices are stepped as those matrices would be on their own."""

import pytest
import torch
from torch import nn

from torch_specgd import Interleaved, Muon, param_groups
from torch_specgd.groups.matrix_view import MatrixView


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_pieces_of_an_interleaved_weight_are_its_matrices(dim: int) -> None:
    """Rows 0-1, 5-6 are the first matrix, rows 2-4, 7-9 the second; joined they are the whole."""
    x = torch.randn(10, 4) if dim == 0 else torch.randn(4, 10)
    view = MatrixView(split=Interleaved(2, (2, 3), dim))
    first, second = view.pieces(x)
    assert torch.equal(first, x.index_select(dim, torch.tensor([0, 1, 5, 6])))
    assert torch.equal(second, x.index_select(dim, torch.tensor([2, 3, 4, 7, 8, 9])))
    assert torch.equal(view.joined([first, second]), x)
    assert view.part_shapes(x.shape) == [first.shape, second.shape]


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_interleaved_weight_is_stepped_like_its_matrices(state_dtype: str | None) -> None:
    """GPT-NeoX's query_key_value learns as q, k and v would on their own, scales included."""
    heads, width, inputs = 3, 4, 8
    grad = torch.randn(heads * 3 * width, inputs)
    fused = nn.Parameter(torch.zeros_like(grad))
    fused.grad = grad
    split = Interleaved(heads, (width,) * 3)
    options = {"lr": 1.0, "weight_decay": 0.0, "nesterov": False, "compute_dtype": "float32"}
    Muon([{"params": [fused], "split": split}], **options, state_dtype=state_dtype).step()
    rows = torch.arange(len(grad)).view(heads, 3, width)
    for i in range(3):
        some = rows[:, i].flatten()
        alone = nn.Parameter(torch.zeros(len(some), inputs))
        alone.grad = grad[some]
        Muon([alone], **options).step()
        tolerance = 1e-5 if state_dtype is None else 0.05  # eight bits of gradient
        torch.testing.assert_close(fused[some], alone, rtol=0, atol=tolerance)


def test_interleaved_split_goes_through_a_checkpoint(tmp_path) -> None:
    """It is stored in plain numbers: torch.load refuses classes that it does not know."""
    model = nn.Linear(4, 12, bias=False)
    groups = param_groups(model, splits={"weight": Interleaved(2, (2, 2, 2))})
    assert groups.routes[0].reason == "matrix, split 2 times 2 + 2 + 2 along 0"
    optimizer = Muon(groups, lr=0.1)
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    other = Muon(param_groups(model), lr=0.1)
    other.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    assert other.param_groups[0]["split"] == (0, (2, 2, 2), 2)


@pytest.mark.parametrize(
    "split",
    [Interleaved(0, (6,)), Interleaved(2, (6, -1)), (0,), (0, (6, 6), 1, 1), (0, (5, 5)), "ab"],
)
def test_splits_that_fit_nothing_are_named(split: object) -> None:
    """Before the optimizer exists."""
    weight = nn.Parameter(torch.zeros(12, 4))
    with pytest.raises(ValueError, match="split"):
        Muon([{"params": [weight], "split": split}])
