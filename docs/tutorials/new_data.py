# %% [markdown]
# # Go on with new data
#
# A model has converged on what there was. New data arrives, and training goes on
# with all of it. Three ways: train on (warm), start again (cold), or shrink the
# weights once and train on. We measure all three. The answer may be that you need
# none of this.

# %%
from copy import deepcopy

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from warmstart import dash_shrink, uniform_shrink

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
y = torch.tensor(labels[order])
x = torch.tensor(images[order] / 16.0, dtype=torch.float32)
x += 0.4 * torch.randn(
    x.shape, generator=torch.Generator().manual_seed(0)
)  # bare digits are easy
old, new, test = slice(0, 200), slice(0, 1000), slice(1000, None)


def make(seed=0):
    """Return a new model."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def train(model, part, seed=0, goal=0.999):
    """Train to the goal on the training part; return steps and test accuracy."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    px, py, steps = x[part], y[part], 0
    for _ in range(200):
        for index in torch.randperm(len(px), generator=generator).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(px[index]), py[index]).backward()
            optimizer.step()
            steps += 1
        if (model(px).argmax(1) == py).float().mean() >= goal:
            break
    return steps, 100 * (model(x[test]).argmax(1) == y[test]).float().mean().item()


steps, accuracy = train(make(), old)
print(f"converged on 200 images after {steps} steps: {accuracy:.1f} %")

# %% [markdown]
# ## Shrink once, and read the report
#
# `dash_shrink` compares every row of the weights with the direction of descent on
# the data, oldest batches first. Rows that descent would still grow are kept,
# others shrink to the floor. The columns `(null)` have the same numbers for
# shuffled gradients. If they agree, the direction of that layer is chance.

# %%
model = make()
train(model, old)
batches = list(zip(x[new].split(100), y[new].split(100), strict=True))
print(dash_shrink(model, batches))

# %% [markdown]
# ## Side by side
#
# The control matters: a uniform shrink takes no direction at all. If it does as
# well, the direction did nothing for you.

# %%
ways = {
    "cold start": lambda model, seed: make(seed + 100),
    "warm start": lambda model, seed: model,
    "dash_shrink": lambda model, seed: (
        dash_shrink(model, batches, inplace=False).model
    ),
    "uniform_shrink": lambda model, seed: (
        uniform_shrink(model, 0.3, inplace=False).model
    ),
}
found = {name: [] for name in ways}
for seed in (0, 1, 2):
    converged = make(seed)
    train(converged, old, seed)
    for name, way in ways.items():
        found[name].append(train(way(deepcopy(converged), seed), new, seed))
for name, runs in found.items():
    steps, scores = np.array(runs).T
    spread = scores.std(ddof=1)
    print(
        f"{name:15} {steps.mean():5.0f} steps  {scores.mean():.1f} ± {spread:.1f} %"
    )

# %% [markdown]
# Differences within the spread mean nothing. Take the cheapest way among those
# that are within it. `warmstart.compare` does this with equal budgets and prints a
# verdict; see [warm starts](../warmstart.md).
