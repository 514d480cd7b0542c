"""Dataset pruning from the first epochs of training.

Data flows through the folders in this order: ``record`` (forward passes to sums), ``score`` (sums
to a table), ``select`` (a table and a ratio to the kept examples), ``load`` (kept examples to
batches). ``report`` explains a selection, ``scale`` carries it to Parquet, Ray and ``datasets``.
"""

from .load.indexed import IndexedDataset, index_batches
from .load.loader import ScoredLoader
from .load.sampler import DualScoreSampler
from .record.keyed import KeyedTracker
from .record.tracker import DualTracker
from .report.evaluate import Comparison, beats_random
from .report.wrong import WrongLabels, wrong_labels
from .scale.hub import prune_dataset
from .scale.streaming import select_parquet
from .score.keys import read_keys, write_keys
from .score.table import ScoreTable
from .select.beta import beta_parameters

__all__ = [
    "Comparison",
    "DualScoreSampler",
    "DualTracker",
    "IndexedDataset",
    "KeyedTracker",
    "ScoreTable",
    "ScoredLoader",
    "WrongLabels",
    "beats_random",
    "beta_parameters",
    "index_batches",
    "prune_dataset",
    "read_keys",
    "select_parquet",
    "write_keys",
    "wrong_labels",
]
