"""Scores against scikit-learn's, intervals, calibration."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from esm2_hyperpod.localization.metrics import (
    as_rows,
    decide,
    expected_calibration_error,
    fit_temperature,
    intervals,
    per_class,
    probabilities,
    scores,
)

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


@given(pairs)
@settings(deadline=None)
def test_scores_are_scikit_learns(pairs):
    truth, predicted = (np.array(column) for column in zip(*pairs))
    ours = scores(as_rows(truth, 4), as_rows(predicted, 4), False)
    assert set(ours) == {"accuracy", "macro_f1", "mcc"}
    assert ours["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, predicted))
    assert ours["macro_f1"] == pytest.approx(
        sklearn_metrics.f1_score(truth, predicted, average="macro", zero_division=0)
    )
    assert ours["mcc"] == pytest.approx(sklearn_metrics.matthews_corrcoef(truth, predicted), abs=1e-12)


def test_intervals_cover_and_shrink_with_more_proteins():
    def intervals_of(times):
        """Of 40 + 40 right and 10 + 10 wrong predictions, each so many times."""
        truth, predicted = ([0] * 50 + [1] * 50), ([0] * 40 + [1] * 50 + [0] * 10)
        rows = [as_rows(np.repeat(numbers, times), 2) for numbers in (truth, predicted)]
        return intervals(*rows, False, seed=0)

    narrow, wide = intervals_of(100), intervals_of(1)
    assert wide["accuracy"][0] < 0.8 < wide["accuracy"][1]
    # A share p of n proteins has the standard error sqrt(p (1 - p) / n).
    assert np.diff(wide["accuracy"])[0] == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 100), rel=0.1)
    assert np.diff(narrow["accuracy"])[0] == pytest.approx(np.diff(wide["accuracy"])[0] / 10, rel=0.2)
    assert intervals_of(1) == wide


def test_per_class_counts_true_proteins():
    truth, predicted = np.eye(2, dtype=int)[[0] * 4 + [1] * 4], np.eye(2, dtype=int)[[0] * 3 + [1] * 5]
    rows = per_class(truth, predicted, ["A", "B"])
    assert rows["A"] == {"precision": 1.0, "recall": 0.75, "f1": pytest.approx(6 / 7), "support": 4}


@given(
    st.lists(
        st.tuples(*[st.lists(st.integers(0, 1), min_size=3, max_size=3)] * 2), min_size=2, max_size=40
    ).filter(lambda rows: all(any(true) for true, _ in rows))
)
@settings(deadline=None)
def test_multilabel_scores_are_scikit_learns(rows):
    truth, predicted = (np.array(column) for column in zip(*rows))
    ours = scores(truth, predicted, True)
    occurs = [label for label in range(3) if truth[:, label].any() or predicted[:, label].any()]
    f1, jaccard = sklearn_metrics.f1_score, sklearn_metrics.jaccard_score
    assert ours["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, predicted))
    assert ours["jaccard"] == pytest.approx(jaccard(truth, predicted, average="samples"))
    assert ours["micro_f1"] == pytest.approx(f1(truth, predicted, average="micro", zero_division=0))
    assert ours["macro_f1"] == pytest.approx(
        f1(truth, predicted, average="macro", labels=occurs, zero_division=0)
    )
    each = [sklearn_metrics.matthews_corrcoef(truth[:, label], predicted[:, label]) for label in occurs]
    assert ours["mcc"] == pytest.approx(np.mean(each), abs=1e-12)


def test_several_labels_are_those_of_a_half_or_more_and_never_none():
    given = np.array([[0.6, 0.5, 0.1], [0.2, 0.3, 0.1]])
    assert decide(given, multi_label=True).tolist() == [[1, 1, 0], [0, 1, 0]]
    assert decide(given, multi_label=False).tolist() == [[1, 0, 0], [0, 1, 0]]


def test_multilabel_intervals_contain_the_score():
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, (200, 4))
    truth[:, 0] |= ~truth.any(axis=1)
    predicted = truth ^ (random.random(truth.shape) < 0.2)
    figures = scores(truth, predicted, True)
    for name, (low, high) in intervals(truth, predicted, True, seed=0).items():
        assert low < figures[name] < high


def test_temperature_undoes_overconfidence():
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 5)) * 2
    truth = np.array([random.choice(5, p=row) for row in probabilities(logits, 1.0, False)])
    temperature = fit_temperature(logits * 3, truth)
    assert temperature == pytest.approx(3.0, rel=0.05)

    def error(t):
        given = probabilities(logits * 3, t, False)
        return expected_calibration_error(given.max(axis=1), given.argmax(axis=1) == truth)

    assert error(temperature) < 0.03 < 0.15 < error(1.0)
