"""Frameworks that read ahead or shard must still credit the right examples.

In each test the logits of an example encode its own number and nothing else, so that crediting a
neighbour shows in the table: with one constant probability per example every u is zero and the
mean probability is the example's own.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

N = 50
# Notices of the frameworks about their own dependencies; nothing of ours warns here.
pytestmark = pytest.mark.filterwarnings("ignore")


class Encoder(nn.Module):
    """Logits (z_i, 0) with z_i a function of the example's number x; trains a useless weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        z = torch.sin(3 * x.float().flatten()) * 2 + 0.0 * self.weight
        return torch.stack([z, torch.zeros_like(z)], dim=-1)


def expected():
    z = np.sin(3 * np.arange(N)) * 2
    p = 1 / (1 + np.exp(-z))
    return np.where(np.arange(N) % 2 == 0, p, 1 - p)


def numbers():
    return TensorDataset(torch.arange(N)[:, None].float(), torch.arange(N) % 2)


def check(sampler):
    table = sampler.table
    np.testing.assert_allclose(table.mean_prob, expected(), atol=1e-6)
    assert table.label.tolist() == [i % 2 for i in range(N)]
    assert np.abs(table.score).max() < 1e-6
    assert set(table.observed.tolist()) == {5}
    assert sampler.tracker.coverage()["duplicates"] == 0


@pytest.mark.filterwarnings("ignore")
def test_accelerate_credits_the_right_examples():
    """Its loader is one batch ahead: a first-in-first-out queue of indices credits neighbours."""
    from prune_accelerate import train

    check(train(numbers(), Encoder(), epochs=6)[0])


def test_lightning_credits_the_right_examples_and_shortens_its_epoch():
    """Lightning reads ahead as well, and must notice that the pruned epoch is shorter."""
    from prune_lightning import train

    sampler, model = train(numbers(), Encoder(), epochs=7)
    check(sampler)
    assert sum(model.seen) == 5 * N + 2 * 25


class SpyModel(nn.Module):
    """A Hugging Face style model around Encoder."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.sizes = []

    def forward(self, input_ids, labels=None):
        from transformers.modeling_outputs import SequenceClassifierOutput

        logits = self.encoder(input_ids[:, 0])
        self.sizes.append(len(logits))
        loss = nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def test_hugging_face_trainer_credits_the_right_examples():
    """The Trainer drops unknown columns, wraps the sampler and reads ahead."""
    from prune_trainer import train

    data = Dataset.from_dict(
        {
            "input_ids": [[i] for i in range(N)],
            "labels": [i % 2 for i in range(N)],
            "row": list(range(N)),
        }
    ).with_format("torch")
    model = SpyModel()
    trainer = train(model, data, epochs=6)
    table = trainer.scores.tracker.table(min_epochs=4)
    np.testing.assert_allclose(table.mean_prob, expected(), atol=1e-6)
    assert set(table.observed.tolist()) == {4}
    assert sum(model.sizes) >= 4 * N + 25


def test_examples_run_with_their_own_real_models(capsys):
    """What the documentation shows must run as it stands."""
    import prune_accelerate
    import prune_lightning
    import prune_trainer

    torch.manual_seed(0)
    small = TensorDataset(*prune_accelerate.digits()[:300])
    network = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    assert len(prune_accelerate.train(small, network, epochs=6)[0].kept) == 150
    assert len(prune_lightning.train(small, network, epochs=6)[0].kept) == 150
    assert (
        len(prune_trainer.train(prune_trainer.tiny_bert(), prune_trainer.sentences()).scores.kept)
        == 32
    )
