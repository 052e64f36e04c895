"""The order of classes: planted ones are found, weak networks are not taken for shuffled ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from qaf_core.pipeline.check.class_order import find_class_order, is_guessing, paired_p_value

NAMES = tuple(f"class {letter}" for letter in "abcdefghij")


def answers(
    recall: float, n: int, seed: int, count: int = 10, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of a network of this mean recall, and labels: errors fall unevenly on the other classes."""
    generator = np.random.default_rng(seed)
    table = np.zeros((count, count))
    for label in range(count):
        right = generator.beta(8 * recall, 8 * (1 - recall)) if recall < 1 else 1.0
        wrong = generator.dirichlet(np.full(count - 1, spread)) * (1 - right)
        table[label] = np.insert(wrong, label, right)
    labels = generator.integers(0, count, n)
    return np.array([generator.choice(count, p=table[label]) for label in labels]), labels


@pytest.mark.parametrize("n", [64, 384])
@pytest.mark.parametrize("recall", [0.75, 0.95])
def test_a_shuffled_order_is_found_and_named(n: int, recall: float) -> None:
    for seed in range(5):
        predictions, labels = answers(recall, n, seed)
        order = np.random.default_rng(seed).permutation(10)
        found = find_class_order(np.argsort(order)[predictions], labels, NAMES)
        assert found is not None
        assert found.value > found.as_is + 0.3
        assert found.p_value < 0.001
        if n == 384:
            assert found.order == tuple(order)
            assert found.moved == int((order != np.arange(10)).sum())


def test_two_classes_exchanged_are_found() -> None:
    predictions, labels = answers(0.9, 384, 0)
    exchanged = np.array([0, 1, 2, 7, 4, 5, 6, 3, 8, 9])
    found = find_class_order(exchanged[predictions], labels, NAMES)
    assert found is not None
    assert found.order == tuple(exchanged)
    assert found.moved == 2


@pytest.mark.parametrize("n", [64, 200, 384])
@pytest.mark.parametrize("recall", [0.15, 0.3, 0.5, 0.9, 1.0])
def test_a_right_order_stands_however_weak_the_network(n: int, recall: float) -> None:
    assert not [seed for seed in range(12) if find_class_order(*answers(recall, n, seed), NAMES)]


def test_many_classes_with_few_images_each() -> None:
    names = tuple(map(str, range(1000)))
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 1000, 384)
    predictions = np.where(generator.random(384) < 0.8, labels, generator.integers(0, 1000, 384))
    assert find_class_order(predictions, labels, names) is None
    found = find_class_order(generator.permutation(1000)[predictions], labels, names)
    assert found is not None


def test_the_order_of_sorted_names_is_recognized() -> None:
    names = tuple(map(str, range(12)))  # sorted as text: 0, 1, 10, 11, 2 …
    predictions, labels = answers(0.95, 384, 1, count=12)
    by_name = np.array(sorted(range(12), key=str))
    found = find_class_order(np.argsort(by_name)[predictions], labels, names)
    assert found is not None
    assert found.sorted_names
    other = np.roll(np.arange(12), 1)
    shuffled = find_class_order(other[predictions], labels, names)
    assert shuffled is not None
    assert not shuffled.sorted_names


def test_classes_that_do_not_occur_do_no_harm() -> None:
    predictions, labels = answers(0.95, 200, 2)
    some = labels < 3
    assert find_class_order(predictions[some], labels[some], NAMES) is None
    assert find_class_order(predictions[:1], labels[:1], NAMES) is None
    assert find_class_order(np.full(50, 3), np.full(50, 3), NAMES) is None


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_paired_test_is_the_exact_binomial_one(gained: int, lost: int) -> None:
    better = np.array([True] * gained + [False] * lost + [True, False])
    worse = np.array([False] * gained + [True] * lost + [True, False])
    expected = binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue if gained + lost else 1.0
    assert paired_p_value(better, worse) == pytest.approx(expected)


def test_guessing_is_told_from_knowing_little() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 300)
    assert is_guessing(generator.permutation(labels), labels, 10)
    assert is_guessing(np.full(300, 4), labels, 10), "always the same answer"
    weak = np.where(generator.random(300) < 0.15, labels, generator.integers(0, 10, 300))
    assert not is_guessing(weak, labels, 10)
    # Nine in ten are good parts: always saying so is right as often, and worth nothing.
    rare = (generator.random(300) < 0.1).astype(np.int64)
    assert is_guessing(np.zeros(300, np.int64), rare, 2)
    assert not is_guessing(np.where(generator.random(300) < 0.6, rare, 0), rare, 2)
    assert not is_guessing(np.zeros(300, np.int64), np.zeros(300, np.int64), 10), "one class tells nothing"
