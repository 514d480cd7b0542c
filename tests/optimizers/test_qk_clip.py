"""QK-clip: every head at the limit, and nothing else moved."""

import pytest
import torch

from torch_specgd import qk_clip_


def attention_logits(q: torch.Tensor, k: torch.Tensor, x: torch.Tensor, heads: int, kv: int):
    """(heads, tokens, tokens) of grouped-query attention, without scale."""
    split_q = (x @ q.T).unflatten(-1, (heads, -1)).movedim(1, 0)
    split_k = (x @ k.T).unflatten(-1, (kv, -1)).movedim(1, 0).repeat_interleave(heads // kv, 0)
    return split_q @ split_k.mT


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (4, 2), (4, 1)])
def test_qk_clip_brings_every_head_to_the_limit(heads: int, kv: int) -> None:
    """After clipping no logit exceeds tau, heads below it keep theirs, nothing else changes."""
    q, k = torch.randn(heads * 3, 8), torch.randn(kv * 3, 8)
    x = torch.randn(10, 8)
    before = attention_logits(q, k, x, heads, kv)
    largest = before.abs().amax((1, 2))
    tau = float(largest.median())
    gamma = qk_clip_(q, k, largest, tau=tau)
    after = attention_logits(q, k, x, heads, kv)
    torch.testing.assert_close(gamma, (tau / largest).clamp(max=1.0))
    torch.testing.assert_close(after, before * gamma[:, None, None], rtol=1e-4, atol=1e-4)
    assert (gamma == 1).any()
    assert (gamma < 1).any()


@pytest.mark.parametrize(
    ("q", "largest", "tau", "message"),
    [
        (torch.zeros(7, 2), torch.ones(2), 1.0, "7 rows, which is no multiple of 2 heads"),
        (torch.zeros(8, 2), torch.tensor([1.0, float("nan")]), 1.0, "not finite"),
        (torch.zeros(8, 2), torch.ones(2), 0.0, "tau must be above 0"),
    ],
)
def test_qk_clip_refuses_what_it_cannot_use(q, largest, tau: float, message: str) -> None:
    """Nothing is written for inputs that make no sense."""
    with pytest.raises(ValueError, match=message):
        qk_clip_(q, torch.zeros(8, 2), largest, tau=tau)
    with pytest.raises(TypeError, match="tau must be a finite number of at least 0, got True"):
        qk_clip_(torch.ones(8, 2), torch.ones(8, 2), torch.ones(2), tau=True)
