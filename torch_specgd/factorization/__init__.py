"""Deep matrix factorization as a test bed: flows, coupling, closed forms, plasticity.

Everything is float64 and batched over seeds. Factors are lists [W_1, ..., W_L], first factor
first, each (S, d_l, d_{l-1}); the model is W = W_L ... W_1.
"""

from .closed_forms import (
    conserved_quantity,
    family_eigenvalues,
    gram_limit,
    hit_time,
    limit_eigenvalues,
    limit_stable_rank,
    soft_threshold,
    weight_decay_cap,
)
from .coupling import (
    bipartite_components,
    connected_components,
    coupled_components,
    coupling_matrix,
    cross_coupling,
    is_connected,
    sample_mask,
)
from .descent import descend
from .flow import gradient_flow, spectral_gradient_flow
from .initialization import family_init, gaussian_init, lora_init
from .model import gradients, loss, product
from .plasticity import PlasticityReport, plasticity, unseen_rmse
from .problem import Problem, chain_mask, diagonal_mask, random_mask, target_from_spectrum
from .trajectory import Trajectory

__all__ = [
    "PlasticityReport",
    "Problem",
    "Trajectory",
    "bipartite_components",
    "chain_mask",
    "connected_components",
    "conserved_quantity",
    "coupled_components",
    "coupling_matrix",
    "cross_coupling",
    "descend",
    "diagonal_mask",
    "family_eigenvalues",
    "family_init",
    "gaussian_init",
    "gradient_flow",
    "gradients",
    "gram_limit",
    "hit_time",
    "is_connected",
    "limit_eigenvalues",
    "limit_stable_rank",
    "lora_init",
    "loss",
    "plasticity",
    "product",
    "random_mask",
    "sample_mask",
    "soft_threshold",
    "spectral_gradient_flow",
    "target_from_spectrum",
    "unseen_rmse",
    "weight_decay_cap",
]
