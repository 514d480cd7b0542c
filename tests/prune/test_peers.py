"""Other scores from the same recording equal their definitions."""

import math

import numpy as np

from data_prune import DualTracker
from data_prune.score import scores
from prune.recordings import PEERS, logits_and_labels, probabilities, record, shuffled
from reference import dual as naive


def test_peers_from_the_same_recording_equal_their_definitions():
    """Comparing methods on one run is worthless if a peer is another formula."""
    z, y = logits_and_labels(T=8, N=30, seed=3)
    batches = [shuffled(30, 7, t) for t in range(8)]
    for t, gone in ((2, 4), (5, 9)):
        batches[t] = [[i for i in b if i != gone] for b in batches[t]]
    tracker = DualTracker(30, epochs=8, window=4, peers="all")
    table = record(tracker, z, y, batches)
    log_p = z.double().log_softmax(-1).numpy()
    hot = np.eye(5)[y.numpy()]
    norms = np.linalg.norm(np.exp(log_p) - hot, axis=-1)
    others = np.where(hot[None] == 1, -np.inf, z.double().numpy()).max(-1)
    margins = (z.double().numpy() * hot).sum(-1) - others
    correct = (z.argmax(-1) == y).double().numpy()
    history = np.array(probabilities(z, y))
    for t, gone in ((2, 4), (5, 9)):
        for array in (norms, margins, correct, history, log_p):
            array[t, gone] = math.nan
    expected = {
        "dyn_unc": naive.dual(history, 4, uncertainty_only=True),
        "el2n": naive.mean_over_epochs(norms),
        "aum": naive.mean_over_epochs(margins),
        "forgetting": naive.forgetting(correct),
        "tdds": naive.tdds(log_p, 4),
    }
    full = {
        "dyn_unc": scores.dyn_unc(history, 4),
        "el2n": scores.el2n(norms),
        "aum": scores.aum(margins),
        "forgetting": scores.forgetting(correct),
        "tdds": scores.tdds(log_p, 4),
    }
    for name in PEERS:
        np.testing.assert_allclose(full[name], expected[name], atol=1e-12, err_msg=name)
        # A mean of eight float32 numbers of size one is good to 1e-6. TDDS takes differences of
        # log-probabilities, float32 of size ten, whose steps are as much larger.
        tolerance = 2e-5 if name == "tdds" else 2e-6
        np.testing.assert_allclose(table.peers[name], expected[name], atol=tolerance, err_msg=name)
    np.testing.assert_allclose(table.score, scores.dual_score(history, 4), atol=1e-6)


def test_never_learned_is_the_maximum_of_forgetting():
    """Released code of several papers gives these examples the score of the easiest ones."""
    assert scores.forgetting(np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])).tolist() == [3.0, 1.0]
