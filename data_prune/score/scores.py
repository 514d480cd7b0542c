"""Per-example histories -> scores. Pure functions, the papers' letters.

Histories are (T, N): one row for each recorded epoch, NaN where an example was not seen. A
window that contains a NaN is skipped for that example; an example without one complete window
scores NaN. The tracker calls the same window functions on its ring, one epoch at a time.

A new score has its formula here; what it needs of a batch is taken in `record/batch.py` by a
function of `record/observe.py`, kept in `record/store.py` and `record/sums.py`, and turned into a
column in `record/summary.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def window_moments(window: Floats) -> tuple[Floats, Floats]:
    """Return mean m and sample standard deviation u of one window, in float64, two passes.

    The one-pass form E[p^2] - E[p]^2 turns negative in float32 for saturated examples.

    Args:
        window: (J, N) probabilities, J >= 2.

    Returns:
        m (N,) and u (N,), NaN where the window has a NaN.

    Example:
        >>> m, u = window_moments(np.array([[0.2], [0.4]]))
        >>> m.round(3).tolist(), u.round(3).tolist()
        ([0.3], [0.141])
    """
    p = np.asarray(window, dtype=np.float64)
    m = p.mean(axis=0)
    u = np.sqrt(np.square(p - m).sum(axis=0) / (len(p) - 1))
    return m, u


def dual_score(history: Floats, window: int) -> Floats:
    r"""Return DUAL: difficulty times prediction uncertainty, averaged over sliding windows.

    .. math:: \mathrm{DUAL} = \frac{1}{T-J+1} \sum_k (1 - m_k)\, u_k

    Args:
        history: (T, N) probability of the target label at each epoch.
        window: J, epochs in a window, 2 <= J <= T.

    Returns:
        (N,) float64; larger is more important.

    Raises:
        ValueError: If ``window`` is outside [2, T].

    Source:
        Cho et al., ICML 2025, the DUAL score.

    Example:
        >>> dual_score(np.array([[0.2], [0.4], [0.9]]), window=2).round(4).tolist()
        [0.1114]
    """
    return _window_mean(history, window, lambda m, u: (1.0 - m) * u)


def dyn_unc(history: Floats, window: int) -> Floats:
    """Return Dyn-Unc: the mean over sliding windows of u (He et al. 2024, eq. 3)."""
    return _window_mean(history, window, lambda m, u: u)


def _window_mean(history: Floats, window: int, term) -> Floats:  # type: ignore[no-untyped-def]
    history = np.asarray(history, dtype=np.float64)
    T = len(history)
    if not 2 <= window <= T:
        raise ValueError(f"window must be between 2 and the {T} recorded epochs, got {window}")
    terms = [term(*window_moments(history[k : k + window])) for k in range(T - window + 1)]
    return _nanmean(np.stack(terms))


def _nanmean(x: Floats) -> Floats:
    """Return the mean over the first axis without the NaNs; NaN where there is nothing else."""
    seen = ~np.isnan(x)
    with np.errstate(invalid="ignore"):
        return np.where(seen, x, 0.0).sum(axis=0) / np.where(seen.any(axis=0), seen.sum(0), np.nan)


def el2n(norms: Floats) -> Floats:
    """Return EL2N: the mean over the recorded epochs of ||softmax - onehot||_2.

    Paul et al. (NeurIPS 2021) average one early epoch over ten runs; from a single run the
    mean over its early epochs stands in, and ``ScoreTable.average`` averages runs.

    Args:
        norms: (T, N) error norms.

    Returns:
        (N,) float64; larger is harder.
    """
    return _nanmean(np.asarray(norms, dtype=np.float64))


def forgetting(correct: Floats) -> Floats:
    """Count forgetting events: correct -> wrong; never learned counts as the maximum, T.

    Args:
        correct: (T, N) of 1.0 and 0.0, NaN where not seen; consecutive sightings are compared.

    Returns:
        (N,) float64; larger is harder.

    Source:
        Toneva et al., ICLR 2019, section 3: unlearned examples are ranked above all others.

    Example:
        >>> forgetting(np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])).tolist()
        [1.0, 3.0]
    """
    correct = np.asarray(correct, dtype=np.float64)
    last = np.zeros(correct.shape[1], dtype=bool)
    learned = np.zeros(correct.shape[1], dtype=bool)
    events = np.zeros(correct.shape[1])
    for row in correct:
        seen, now = ~np.isnan(row), row >= 0.5
        events += seen & last & ~now
        last = np.where(seen, now, last)
        learned |= seen & now
    events[~learned] = len(correct)
    return events


def aum(margins: Floats) -> Floats:
    """Return the area under the margin: the mean of the target's logit minus the best other.

    Args:
        margins: (T, N) logit margins.

    Returns:
        (N,) float64; SMALLER is harder (Pleiss et al., NeurIPS 2020).
    """
    return _nanmean(np.asarray(margins, dtype=np.float64))


def tdds_window(steps: Floats) -> Floats:
    """Return the spread of the epoch-to-epoch changes inside one TDDS window.

    Args:
        steps: (J - 1, N) absolute cross-epoch divergences.

    Returns:
        (N,): Euclidean norm of the deviations from the window's mean.
    """
    steps = np.asarray(steps, dtype=np.float64)
    return np.sqrt(np.square(steps - steps.mean(axis=0)).sum(axis=0))


def tdds(log_probs: Floats, window: int, decay: float = 0.9) -> Floats:
    r"""Return TDDS: the exponentially weighted spread of the change of the whole prediction.

    .. math:: d_t = \sum_c |p_{t+1,c} (\log p_{t+1,c} - \log p_{t,c})|, \qquad
              S \leftarrow (1 - \eta) S + \eta\, \lVert d_{k..k+J-2} - \bar d \rVert_2

    Args:
        log_probs: (T, N, C) log-softmax at each epoch, NaN rows where not seen.
        window: J, epochs in a window, 3 <= J <= T.
        decay: eta, weight of the newest window.

    Returns:
        (N,) float64; larger is more important; NaN without one complete window.

    Source:
        Zhang et al., CVPR 2024; with softmax taken once and windows that really slide.
    """
    log_probs = np.asarray(log_probs, dtype=np.float64)
    if not 3 <= window <= len(log_probs):
        raise ValueError(f"window must be between 3 and {len(log_probs)} epochs, got {window}")
    new, old = log_probs[1:], log_probs[:-1]
    d = np.abs(np.exp(new) * (new - old)).sum(axis=-1)
    score = np.full(d.shape[1], np.nan)
    for k in range(len(d) - window + 2):
        spread = tdds_window(d[k : k + window - 1])
        started = np.nan_to_num(score) * (1.0 - decay) + decay * spread
        score = np.where(np.isnan(spread), score, started)
    return score
