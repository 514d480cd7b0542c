# %% [markdown]
# # Find and drop wrong labels
#
# A data set has labels that are wrong, and nobody knows which. A model learns
# right labels early and wrong ones late or never. `DualTracker` records that while
# you train, at no extra forward pass. We redraw a fifth of the labels of
# scikit-learn's digits, find them, and train again without them.

# %%
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from data_prune import DualTracker, wrong_labels

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
x = torch.tensor(images[order] / 16.0, dtype=torch.float32)
clean = torch.tensor(labels[order])
train_x, test_x, test_y = x[:1400], x[1400:], clean[1400:]

noise = torch.Generator().manual_seed(0)
redrawn = torch.rand(1400, generator=noise) < 0.2
random_labels = torch.randint(10, (1400,), generator=noise)
given = torch.where(redrawn, random_labels, clean[:1400])
wrong = (given != clean[:1400]).numpy()
print(f"{len(given)} images for training, {wrong.sum()} with a wrong label")

# %% [markdown]
# ## Record while training
#
# The loop is an ordinary one. `tracker.update` takes the positions of the batch,
# its logits and its labels; `end_epoch` closes an epoch.

# %%
EPOCHS = 20


def train(x, y, tracker=None, seed=0):
    """Train a small net; record into the tracker if there is one."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x), generator=generator).split(50):
            logits = model(x[index])
            if tracker is not None:
                tracker.update(index, logits, y[index])
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, y[index]).backward()
            optimizer.step()
        if tracker is not None:
            tracker.end_epoch()
    return model


def accuracy(model):
    """Return the accuracy on the test part, in %."""
    return 100 * (model(test_x).argmax(1) == test_y).float().mean().item()


tracker = DualTracker(len(given), epochs=EPOCHS, window=10)
noisy = train(train_x, given, tracker)
table = tracker.table()
print(
    f"trained on all given labels: {accuracy(noisy):.1f} % on the clean test part"
)

# %% [markdown]
# ## Look at the suspects
#
# `table.mean_prob` is the probability that the model gave to the label, averaged
# over the epochs. `wrong_labels` ranks it by what is usual in the class: examples
# whose label the model never believed come first.

# %%
suspects = wrong_labels(table, count=len(table)).rows
for share in (0.05, 0.1, 0.15, 0.2):
    first = suspects[: int(share * len(suspects))]
    found = wrong[first].sum() / wrong.sum()
    print(
        f"lowest {share:3.0%} {wrong[first].mean():5.0%} wrong, {found:3.0%} of all"
    )

# %% [markdown]
# ## Let the selection set them aside
#
# Nobody tells you the share of wrong labels. The default of `table.select` sets
# aside each label that is less probable than half the median of its class (or than
# a gap below that, under which wrong labels crowd), unless such labels still move
# while they are recorded: then they are hard, not wrong.
# The paper's rule (`preset="paper"`) asks for examples that are hard *and*
# undecided, and some wrong labels are both.

# %%
half = {
    "default rule": table.select(0.5),
    "paper's rule": table.select(0.5, preset="paper"),
    "random": table.select(0.5, method="random"),
}
for name, kept in half.items():
    print(f"{name:12} keeps {len(kept)} images, {wrong[kept].sum():3d} wrong")

# %% [markdown]
# ## Train again
#
# On all that is given, on the half that the default keeps, and on all but the
# lowest fifth. For the last, look at some suspects by eye, from the lowest on,
# until most of them are right.

# %%
parts = {
    "everything": np.arange(len(given)),
    "random half": half["random"],
    "default half": half["default rule"],
    "all but the lowest fifth": np.sort(suspects[int(0.2 * len(suspects)) :]),
}
for name, part in parts.items():
    index = torch.from_numpy(part)
    found = [
        accuracy(train(train_x[index], given[index], seed=seed))
        for seed in (1, 2, 3)
    ]
    seeds = ", ".join(f"{value:.1f}" for value in found)
    print(f"{name:24} {np.mean(found):.1f} % (seeds: {seeds})")

# %% [markdown]
# ## Keep the scores
#
# `table.to_parquet("scores.parquet")` saves them; `data-prune report
# scores.parquet -o report.html` draws a page about them. More:
# [pruning](../pruning.md).
