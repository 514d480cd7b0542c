"""LoRA by hand: two matrices, SpecGD, and a forecast of when each direction is learned.

    python examples/lora_loop.py

A 60 x 70 weight is fitted by B A of rank 5, B starting at zero as in LoRA. Theory says that
sqrt(sigma) of every direction grows by the learning rate per step, the small ones being complete
first; the tracker checks it.
"""

import torch
from torch import nn

from torch_specgd import (
    ConstantThenLinear,
    LoraPair,
    SpecGD,
    SpectrumTracker,
    check_travel_budget,
    lora_param_groups,
)
from torch_specgd.factorization import target_from_spectrum

torch.manual_seed(0)
target = target_from_spectrum(60, 70, [10.0, 8.0, 6.0, 4.0, 2.0]).float()
lora_b, lora_a = nn.Parameter(torch.zeros(60, 5)), nn.Parameter(1e-3 * torch.randn(5, 70))
pair = LoraPair("adapter", lora_b, lora_a)

optimizer = SpecGD(lora_param_groups([pair], lr_b=0.01, lr_a=0.01))
schedule = ConstantThenLinear(optimizer, total_steps=600, constant_fraction=0.6)
check_travel_budget(schedule, sigma_max=10.0)  # warns if 600 steps could not get there
tracker = SpectrumTracker(
    None, every=1, pairs=[pair], targets={"adapter": target}, optimizer=optimizer
)

tracker.update()
for _ in range(600):
    optimizer.zero_grad()
    loss = 0.5 * (lora_b @ lora_a - target).square().sum()
    loss.backward()
    optimizer.step()
    schedule.step()
    tracker.update()

steps, modes = tracker.history("adapter", "modes")
goal = torch.linalg.svdvals(target.double())[:5]
arrived = steps[(modes >= 0.99 * goal).double().argmax(0)]
for sigma, predicted, step in zip(goal, tracker.predicted_hits("adapter"), arrived, strict=True):
    print(f"sigma = {sigma:4.1f}: predicted step {predicted:5.0f}, reached 99 % at step {step}")
print(f"loss at the end: {loss.item():.1e}")
