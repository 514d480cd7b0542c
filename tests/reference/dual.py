"""Slow float64 truths of data_prune: plain loops over examples, epochs and draws."""

import itertools
import math

import numpy as np


def softmax(z):
    e = [math.exp(float(x) - max(map(float, z))) for x in z]
    return [x / sum(e) for x in e]


def dual(history, window, uncertainty_only=False):
    """history[t][i] is a probability or NaN; double loop over examples and windows."""
    T, N = len(history), len(history[0])
    out = []
    for i in range(N):
        terms = []
        for k in range(T - window + 1):
            p = [float(history[k + j][i]) for j in range(window)]
            if any(math.isnan(x) for x in p):
                continue
            m = sum(p) / window
            u = math.sqrt(sum((x - m) ** 2 for x in p) / (window - 1))
            terms.append(u if uncertainty_only else (1 - m) * u)
        out.append(sum(terms) / len(terms) if terms else math.nan)
    return np.array(out)


def mean_over_epochs(history):
    """Mean of the values that are there, example by example."""
    out = []
    for i in range(len(history[0])):
        seen = [float(row[i]) for row in history if not math.isnan(row[i])]
        out.append(sum(seen) / len(seen) if seen else math.nan)
    return np.array(out)


def forgetting(correct):
    """Toneva's count with a loop over sightings; never learned is the number of epochs."""
    out = []
    for i in range(len(correct[0])):
        seen = [bool(row[i]) for row in correct if not math.isnan(row[i])]
        events = sum(a and not b for a, b in itertools.pairwise(seen))
        out.append(events if any(seen) else len(correct))
    return np.array(out, dtype=float)


def tdds(log_probs, window, eta=0.9):
    """log_probs[t][i][c]; closed form of the exponentially weighted sum over windows."""
    T, N = len(log_probs), len(log_probs[0])
    out = []
    for i in range(N):
        spreads = []
        for k in range(T - window + 1):
            d = []
            for j in range(k, k + window - 1):
                new, old = log_probs[j + 1][i], log_probs[j][i]
                d.append(sum(abs(math.exp(a) * (a - b)) for a, b in zip(new, old, strict=True)))
            if any(math.isnan(x) for x in d):
                continue
            mean = sum(d) / len(d)
            spreads.append(math.sqrt(sum((x - mean) ** 2 for x in d)))
        if not spreads:
            out.append(math.nan)
            continue
        ages = range(len(spreads) - 1, -1, -1)
        out.append(sum(eta * (1 - eta) ** a * s for a, s in zip(ages, spreads, strict=True)))
    return np.array(out)


def draw_without_replacement(weights, size, rng):
    """Successive sampling, one draw after the other."""
    left = list(range(len(weights)))
    chosen = []
    for _ in range(size):
        w = np.array([weights[i] for i in left])
        chosen.append(left.pop(rng.choice(len(left), p=w / w.sum())))
    return sorted(chosen)


def inclusion_probabilities(weights, k):
    """Exact chance of each example to be among k drawn one after the other by weight."""
    chance = {frozenset(): 1.0}
    for _ in range(k):
        longer = {}
        for drawn, q in chance.items():
            left = [i for i in range(len(weights)) if i not in drawn]
            total = sum(weights[i] for i in left)
            for i in left:
                more = drawn | {i}
                longer[more] = longer.get(more, 0.0) + q * weights[i] / total
        chance = longer
    return [sum(q for drawn, q in chance.items() if i in drawn) for i in range(len(weights))]


def lower_medians(prob, label):
    """Class -> the middle probability, the lower of two."""
    of = {}
    for p, own in zip(prob, label, strict=True):
        of.setdefault(own, []).append(p)
    return {own: sorted(p)[(len(p) - 1) // 2] for own, p in of.items()}


def set_aside(prob, label, share=0.5):
    """Mark what is less probable than a share of its class's median."""
    median = lower_medians(prob, label)
    return np.array([p < share * median[own] for p, own in zip(prob, label, strict=True)])


def gap(prob, label, share=0.5, steps=16):
    """Share of the median at the emptiest place between a crowd far below and half of it."""
    median = lower_medians(prob, label)
    roots = [(p / median[own]) ** 0.5 for p, own in zip(prob, label, strict=True)]
    width = share**0.5 / steps
    crowd = [sum(i * width <= r < (i + 1) * width for r in roots) for i in range(steps)]
    # Three steps together; the ends have themselves as a neighbour.
    crowd = [sum(crowd[min(max(j, 0), steps - 1)] for j in (i - 1, i, i + 1)) for i in range(steps)]
    fullest = crowd.index(max(crowd))
    emptiest = max(range(fullest, steps), key=lambda i: (-crowd[i], i))
    return share if emptiest == steps - 1 else ((emptiest + 0.5) * width) ** 2


def wrong_labels(label, mean_prob):
    """Rows by their probability over the median of their class, one class after the other."""
    of = {}
    for i, y in enumerate(label):
        of.setdefault(int(y), []).append(float(mean_prob[i]))
    median = {
        y: sorted(p)[len(p) // 2] / 2 + sorted(p)[(len(p) - 1) // 2] / 2 for y, p in of.items()
    }
    ranked = [
        (float(p) / median[int(y)], i)
        for i, (y, p) in enumerate(zip(label, mean_prob, strict=True))
    ]
    return [i for _, i in sorted(ranked)]


def fill_groups(order, size, kept):
    """Names in order, each taken if that comes nearer to the number kept than without it."""
    chosen, left = set(), kept
    for name in order:
        if left > 0 and abs(left - size[name]) <= left:
            chosen.add(name)
            left -= size[name]
    return chosen
