"""Dataset pruning from the first epochs of training.

Data flows through the files in this order: ``observe`` (logits to probabilities), ``tracker``
and ``store`` (rows and running sums), ``scores`` (windows to scores), ``table``, ``beta``,
``selection`` and ``topk`` (scores to kept examples), ``sampler`` and ``loader``.
"""

from data_prune.beta import beta_parameters
from data_prune.keyed import KeyedTracker
from data_prune.loader import IndexedDataset, ScoredLoader, index_batches
from data_prune.sampler import DualScoreSampler
from data_prune.table import ScoreTable
from data_prune.tracker import DualTracker

__all__ = [
    "DualScoreSampler",
    "DualTracker",
    "IndexedDataset",
    "KeyedTracker",
    "ScoreTable",
    "ScoredLoader",
    "beta_parameters",
    "index_batches",
]
