"""Do warm starts lose on the small sets that libraries bring along? Three of them as streams.

Wine and breast cancer (scikit-learn) and passages of Python's own manual, to be assigned to ten of
its topics, arrive in five chunks. An MLP learns each of them by heart, going on from the last one
(warm) or anew (cold), with clean labels and with a fifth of them drawn anew. A set is good for an
example if the warm start ends a point or more below the cold one on each of three seeds.

    python experiments/warm_embedded.py           # twelve rows on three seeds, two on ten others
    python experiments/warm_embedded.py --quick   # one run in seconds
"""

from __future__ import annotations

import argparse
import itertools
from pydoc_data.topics import topics

import torch
from bed import RESULTS, append, read
from prune_bed import bags, hashed, relabel
from torch import Tensor, nn
from warm_bed import Learner
from warm_streams import OPTIMIZERS

CSV = RESULTS / "warm_embedded.csv"
CHUNKS, SEEDS, AGAIN, PASSAGE = 5, (0, 1, 2), tuple(range(10, 20)), 16
RATES = {"SGD": 0.1, "AdamW": 0.003}
SIZES = {"wine": 24, "breast cancer": 60, "topics": 100}


def table(name: str) -> tuple[Tensor, Tensor]:
    """A table of scikit-learn's, every column standardized."""
    from sklearn import datasets

    data = datasets.load_wine() if name == "wine" else datasets.load_breast_cancer()
    x = torch.from_numpy(data.data).float()
    return (x - x.mean(0)) / x.std(0), torch.from_numpy(data.target).long()


def passages() -> tuple[Tensor, Tensor]:
    """Passages of the ten longest topics, as hashed words, and which topic they are of."""
    texts, labels = [], []
    for label, name in enumerate(sorted(topics, key=lambda t: -len(topics[t]))[:10]):
        words = topics[name].split()
        for start in range(0, len(words) - PASSAGE, PASSAGE):
            texts.append(hashed(" ".join(words[start : start + PASSAGE])))
            labels.append(label)
    return bags(texts), torch.tensor(labels)


def learner(width: int, classes: int, optimizer: str, seed: int) -> Learner:
    """A fresh MLP."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes)
        )
    generator = torch.Generator().manual_seed(seed)
    return Learner(model, RATES[optimizer], generator, OPTIMIZERS[optimizer], 32)


def lost(x: Tensor, y: Tensor, size: int, optimizer: str, labels: str, seed: int) -> float:
    """Points by which the warm start ends below the cold one."""
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=g)
    seen, held = order[: CHUNKS * size], order[CHUNKS * size :]
    given = relabel(y[seen], "redrawn" if labels == "wrong" else "clean", g)
    shape = x.shape[1], int(y.max()) + 1
    warm, cold = (learner(*shape, optimizer, s) for s in (seed, 100 + seed))
    for arrived in range(size, CHUNKS * size + 1, size):
        warm.fit(x[seen[:arrived]], given[:arrived])
        warm.fresh_optimizer()
    cold.fit(x[seen], given)
    return cold.test(x[held], y[held]) - warm.test(x[held], y[held])


def main() -> None:
    """Run what the CSV lacks: a row for each set, kind of labels, optimizer and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one run in seconds")
    torch.set_num_threads(1)
    if parser.parse_args().quick:
        assert abs(lost(*table("wine"), SIZES["wine"], "AdamW", "clean", 0)) < 20
        return
    keys = ("set", "labels", "optimizer", "seed")
    done = {tuple(row[k] for k in keys) for row in read(CSV)}
    for place in itertools.product(SIZES, ("clean", "wrong"), RATES):
        name, labels, optimizer = place
        x, y = passages() if name == "topics" else table(name)
        # The two places that lose on the first seeds are looked at again.
        again = name != "topics" and (labels, optimizer) == ("wrong", "AdamW")
        for seed in (*SEEDS, *(AGAIN if again else ())):
            if (*place, str(seed)) not in done:
                points = lost(x, y, SIZES[name], optimizer, labels, seed)
                row = {**dict(zip(keys, (*place, seed), strict=True)), "lost": points}
                append(CSV, [row])
                print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
