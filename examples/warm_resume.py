"""New data has arrived: choose a warm start on your own data, apply it, train on, watch plasticity.

python examples/warm_resume.py      # scikit-learn's digits, under a minute on one core
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from warmstart import Diagnostics, compare, dash_shrink

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def digits() -> tuple[Batches, Batches, Batches]:
    """Batches of 64: last month's, this month's, and the test's."""
    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    labels = torch.tensor(y)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    batches = [(images[i], labels[i]) for i in order.split(64)]
    return batches[:4], batches[4:8], batches[8:]


def make() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches) -> None:
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    old, new, test = digits()
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(20):
        train(model, optimizer, old)

    # Which warm start pays on this data, at which cost? The answer may be "none".
    print(compare(make, model, old, new, test_data=test, max_epochs=15, seeds=(0,)))

    # The three lines of a resume: shrink, let the optimizer forget, measure BatchNorm anew.
    print(
        dash_shrink(
            model,
            [*old, *new],
            optimizer=optimizer,
            optimizer_state="reset",
            recalibrate_norm=8,
        )
    )
    with Diagnostics(model) as probe:
        for epoch in range(5):
            train(model, optimizer, old + new)
            probe.record(epoch)
    for r in probe.readings:
        if r.kind == "activation":
            print(f"epoch {r.epoch} layer {r.layer}: {r.dormant:.0%} dormant, "
                  f"effective rank {r.effective_rank:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
