# %% [markdown]
# # Read an adapter's spectrum
#
# A LoRA adapter adds `lora_B @ lora_A` to a weight. Its singular values say how
# many directions it has learned, and how unequally. Theory says that spectral
# descent grows all directions at one rate.

# %%
import torch
from torch import nn

from torch_specgd import (
    LoraPair,
    SpecGD,
    SpectrumTracker,
    effective_rank,
    lora_param_groups,
    lora_singular_values,
    stable_rank,
)
from torch_specgd.factorization import target_from_spectrum

# %% [markdown]
# The task is known: a change of rank 4 with singular values 8, 4, 2, 1, learned by
# an adapter of rank 8. On a model of yours, leave `pairs` out: adapters of PEFT,
# loralib and torchtune are found by name.

# %%
torch.manual_seed(0)
target = target_from_spectrum(60, 50, [8.0, 4.0, 2.0, 1.0]).float()
init = 0.01 * torch.randn(8, 50)


def train(name, steps=160):
    """Fit the target from a fresh adapter; record the spectrum every 20 steps."""
    pair = LoraPair(
        "adapter", nn.Parameter(torch.zeros(60, 8)), nn.Parameter(init.clone())
    )
    if name == "SpecGD":
        optimizer = SpecGD(lora_param_groups([pair], lr_b=0.02, lr_a=0.02))
    else:
        optimizer = torch.optim.AdamW(
            [pair.lora_b, pair.lora_a], lr=0.02, weight_decay=0.0
        )
    tracker = SpectrumTracker(None, every=20, pairs=[pair], optimizer=optimizer)
    for step in range(steps + 1):
        tracker.update(step)
        optimizer.zero_grad()
        loss = 0.5 * (pair.lora_b @ pair.lora_a - target).square().sum()
        loss.backward()
        optimizer.step()
    return pair, tracker, loss.item()


runs = {name: train(name) for name in ("AdamW", "SpecGD")}

# %% [markdown]
# ## How the directions grow
#
# With AdamW the large ones come first. With SpecGD the square root of each grows
# by the step size, whatever its goal is, and small ones are complete first.

# %%
for name, (_, tracker, _) in runs.items():
    steps, sigma = tracker.history("adapter")
    print(f"{name}: step, then the first five singular values (goal 8, 4, 2, 1, 0)")
    for step, row in zip(steps.tolist(), sigma, strict=True):
        print(f"  {step:4d}  " + "  ".join(f"{s:6.3f}" for s in row[:5].tolist()))

# %% [markdown]
# ## What is in the adapter now

# %%
ranks = f"{stable_rank(target):.2f}, effective rank {effective_rank(target):.2f}"
print(f"target: stable rank {ranks}")
for name, (pair, _, loss) in runs.items():
    product = pair.lora_b.detach() @ pair.lora_a.detach()
    print(
        f"{name:6}: stable rank {stable_rank(product):.2f}, "
        f"effective rank {effective_rank(product):.2f}, "
        f"fifth value {lora_singular_values(pair.lora_b, pair.lora_a)[4]:.3f}, "
        f"loss {loss:.1e}"
    )

# %% [markdown]
# A constant step leaves SpecGD at a floor: every direction moves by a whole step,
# to the last. A falling rate removes it (`ConstantThenLinear`). More, and where
# the theory does not hold: [theory](../theory.md).
