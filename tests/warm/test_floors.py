"""What normalization means for a shrink: blind directions, and floors that look at it."""

import pytest
import torch
from torch import nn

from warm.trained import data, trained
from warmstart import GradientDirection, dash_shrink


def test_train_mode_on_batchnorm_says_that_direction_is_blind() -> None:
    """Per filter in train mode every cosine is zero: DASH is a uniform shrink and must say so."""
    model, _ = trained()
    report = dash_shrink(model, data(), units="filter", grad_mode="train")
    row = report.row("0.weight")
    assert row.norm_follows == "1"
    assert row.share_at_floor == 1.0
    assert row.effective_lr == pytest.approx(1 / 0.09, rel=1e-5)
    assert any(n.startswith("direction carries no information for 0.weight") for n in report.notes)
    assert report.row("4.weight").effective_lr is None


def test_auto_floor_looks_at_normalization() -> None:
    """0.3 where BatchNorm follows, 0.1^(1/n) for n weights in a row without one."""
    model, _ = trained()
    report = dash_shrink(model, data(), floor="auto")
    assert [r.floor for r in report.rows] == [0.3, 0.3, 0.3]
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    report = dash_shrink(plain, [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))], floor="auto")
    assert report.row("0.weight").floor == pytest.approx(0.1 ** (1 / 3))
    normed = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2))
    report = dash_shrink(normed, [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))], floor="auto")
    assert report.row("0.weight").floor == 0.3
    assert report.row("2.weight").floor == pytest.approx(0.1**0.5)
    direction = GradientDirection(normed)
    direction.update({"0.weight": torch.ones(4, 4)})
    with pytest.raises(ValueError, match="give data, not a fed direction"):
        dash_shrink(normed, direction, floor="auto")


def decay(model: nn.Module, batch: object) -> torch.Tensor:
    """A loss that shortens every weight alike: all cosines are -1, all factors the floor."""
    model(batch)
    return sum((p.double() ** 2).sum() for p in model.parameters()).float()  # type: ignore[union-attr]


class Functional(nn.Module):
    """ReLUs that no hook sees, and a shortcut: two layers read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shortcut, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        return self.head(torch.relu(self.b(x)) + self.shortcut(x))


@pytest.mark.parametrize(
    ("model", "depth"),
    [
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)), 3),
        (Functional(), 3),
    ],
)
def test_auto_floor_keeps_the_function_of_a_plain_net_up_to_its_scale(
    model: nn.Module, depth: int
) -> None:
    """One factor per bias vector would open and close other ReLUs than before."""
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    before = model(x).detach()
    report = dash_shrink(model, [x], floor="auto", forward=decay)
    floor = next(r.floor for r in report.rows if r.name.endswith("weight"))
    assert report.rows[0].share_at_floor == 1.0
    torch.testing.assert_close(model(x).detach(), floor**depth * before, rtol=1e-5, atol=1e-6)
    biases = [r for r in report.rows if r.name.endswith("bias")]
    assert len({round(r.mean_factor, 6) for r in biases}) == depth


def test_auto_floor_follows_the_official_rule_behind_normalization() -> None:
    """A head alone behind its normalization has no row of factors that could multiply."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(3)]
    auto = dash_shrink(model, batches, floor="auto", dry_run=True).factors
    official = dash_shrink(model, batches, floor=0.3, dry_run=True).factors
    assert auto is not None
    assert official is not None
    assert all(torch.equal(auto[name], official[name]) for name in official)
