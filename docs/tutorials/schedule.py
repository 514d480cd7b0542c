# %% [markdown]
# # Design a schedule, and print what it costs on an H100
#
# The engine makes every singular value of a matrix nearly one by a few steps of
# odd polynomials. Which polynomials, how many, and in which form is a plan. No GPU
# is needed to read one.

# %%
import torch

from torch_specgd.triton_kernels import (
    certify,
    cost_on_paper,
    design_schedule,
    orthogonalize,
    plan,
)

shape = (12, 768, 3072)  # twelve matrices, one batch in a step of Muon
h100 = {"device": "cuda", "dtype": torch.bfloat16, "arch": "sm_90"}
default = plan(shape, **h100)
print(default)

# %% [markdown]
# ## What the default launches
#
# Counted, not timed: launches, tiles, FLOPs, bytes, and the longer of arithmetic
# and traffic at the data sheet's rates.

# %%
print(cost_on_paper(default, "sm_90"))

# %% [markdown]
# ## A schedule of your own
#
# Four steps of degree 5 for singular values from 0.01 on, found by Remez exchange:
# the polynomials that come closest to one. `headroom` is the room that rounding
# may take.

# %%
mine = design_schedule(5, 4, lower=1e-2, safety=1.0, headroom=1.05, name="mine")
print(mine)

# %%
print(cost_on_paper(plan(shape, schedule=mine, **h100), "sm_90"))

# %% [markdown]
# It costs about as much as the default and reaches less far: three squares in a
# row do more than three products of degree 5. Give it fewer steps, and it is
# cheaper and reaches less far still.
#
# ## Is it good enough?
#
# `certify` says how far a result is from a polar factor. Try the spectra that you
# expect, and hard ones: here singular values fall over two and over four decades.

# %%
generator = torch.Generator().manual_seed(0)
for decades in (2, 4):
    left = torch.linalg.qr(torch.randn(96, 96, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(192, 96, generator=generator))[0]
    x = left * torch.logspace(0, -decades, 96) @ right.T
    for name, schedule in (("mine", mine), ("deep", "deep")):
        found = certify(orthogonalize(x, schedule=schedule))
        print(
            f"{decades} decades, {name}: largest value {found.sigma_max:.3f}, "
            f"deviation {found.deviation:.3f}, rank {found.rank:.0f} of 96"
        )

# %% [markdown]
# Small singular values are reached by the default and not by this one. A schedule
# goes to the optimizer as `Muon(..., ns_coefficients=mine.steps)`. How to test one
# for 16 bits: [safety](../engine.md#safety-and-a-warning-about-low-precision).
