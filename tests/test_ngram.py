"""The n-gram baseline: hand-made numbers, a slow model with dictionaries, texts whose entropy is known."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest

from fastlstm import _ngram


def codes_of(text):
    alphabet = sorted(set(text))
    return np.array([alphabet.index(c) for c in text]), len(alphabet)


def slow(train, context, symbol, symbols):
    """p(symbol | context) straight from the definition, as a fraction."""
    if context is None:
        return Fraction(1, symbols)
    lower = slow(train, context[1:] if context else None, symbol, symbols)
    after = Counter(
        train[k] for k in range(len(context), len(train)) if train[k - len(context) : k] == context
    )
    if not after:
        return lower
    return (after[symbol] + len(after) * lower) / (after.total() + len(after))


def test_by_hand():
    """abab, ab: p(a) = p(b) = 1/2; after b one a, (1 + 1/2) / (1 + 1); after a two b, (2 + 1/2) / (2 + 1)."""
    codes, symbols = codes_of("ababab")
    found = list(_ngram.probabilities(codes, 4, symbols))
    assert np.allclose(found[0], [1 / 2, 1 / 2])
    assert np.allclose(found[1], [3 / 4, 5 / 6])
    validation, test = -math.log2(3 / 4), -math.log2(5 / 6)
    order1 = _ngram.baseline(codes[:4], codes[4:5], codes[5:], symbols)
    assert order1.order >= 1 and order1.validation <= validation and order1.test <= test


@pytest.mark.parametrize("seed", range(4))
def test_against_dictionaries(seed):
    rng = np.random.default_rng(seed)
    train, held, symbols = 60, 25, 3 + seed
    codes = rng.integers(0, rng.integers(1, symbols + 1, train + held))  # uneven, the last symbol perhaps new
    text = tuple(map(int, codes))
    for order, chances in enumerate(_ngram.probabilities(codes, train, symbols)):
        for k in range(held):
            at = train + k
            wanted = slow(text[:train], text[at - order : at], text[at], symbols)
            assert chances[k] == pytest.approx(float(wanted), rel=1e-12)
        if order == 5:
            break
    assert order >= 1


def test_probabilities_sum_to_one():
    rng = np.random.default_rng(5)
    symbols, text = 4, rng.integers(0, 4, 50)
    sums = defaultdict(float)
    for last in range(symbols):
        codes = np.append(text, last)
        for order, chances in enumerate(_ngram.probabilities(codes, 45, symbols)):
            sums[order] += chances[-1]
    assert len(sums) >= 3
    for total in sums.values():
        assert total == pytest.approx(1)


def test_noise_has_no_order_and_all_its_entropy():
    codes = np.random.default_rng(6).integers(0, 8, 40_000)
    found = _ngram.baseline(codes[:30_000], codes[30_000:35_000], codes[35_000:], 8)
    assert found.order == 0 and found.test == pytest.approx(3, abs=1e-2)


def test_a_markov_chain_is_found_out():
    """Each symbol follows from the two before it, but for one time in ten: its entropy is known."""
    rng = np.random.default_rng(7)
    codes = [0, 1]
    for _ in range(30_000):
        codes.append((codes[-1] + 2 * codes[-2] + 1) % 5 if rng.random() < 0.9 else int(rng.integers(5)))
    array = np.array(codes)
    right, wrong = 0.9 + 0.1 / 5, 0.1 / 5
    entropy = -right * math.log2(right) - 4 * wrong * math.log2(wrong)
    found = _ngram.baseline(array[:24_000], array[24_000:27_000], array[27_000:], 5)
    assert found.order == 2
    assert found.test == pytest.approx(entropy, abs=0.05)


def test_the_shortest_text():
    assert _ngram.baseline(np.array([0]), np.array([0]), np.array([0]), 1) == (0, 0.0, 0.0)
    found = _ngram.baseline(np.array([0]), np.array([1]), np.array([1]), 2)
    assert found.order == 0 and found.test == pytest.approx(2)  # (0 + 1 * 1/2) / (1 + 1)
