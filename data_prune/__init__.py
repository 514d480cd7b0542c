"""Dataset pruning from the first epochs of training.

Data flows through the files in this order: ``observe`` and ``arrivals`` (logits to probabilities),
``tracker``, ``store``, ``sums`` and ``ring`` (rows and running sums, by the functions of
``scores``), ``summary`` and ``table``, ``plan``, ``selection``, ``topk`` and ``draw`` (scores to
kept examples), ``order``, ``indexed``, ``loader`` and ``sampler``, ``report`` and ``evaluate``.
``streaming``, ``ray_data`` and ``hub`` carry the same selection to Parquet, Ray and ``datasets``.
"""

from data_prune.beta import beta_parameters
from data_prune.evaluate import Comparison, beats_random
from data_prune.hub import prune_dataset
from data_prune.indexed import IndexedDataset, index_batches
from data_prune.keyed import KeyedTracker
from data_prune.loader import ScoredLoader
from data_prune.sampler import DualScoreSampler
from data_prune.streaming import select_parquet
from data_prune.table import ScoreTable
from data_prune.tracker import DualTracker

__all__ = [
    "Comparison",
    "DualScoreSampler",
    "DualTracker",
    "IndexedDataset",
    "KeyedTracker",
    "ScoreTable",
    "ScoredLoader",
    "beats_random",
    "beta_parameters",
    "index_batches",
    "prune_dataset",
    "select_parquet",
]
