"""Masking and cropping: the right shares, never a special token, a function of the key alone."""

import numpy as np
import pytest

from esm2_hyperpod.alphabet import AMINO_ACID_IDS, CLS, EOS, MASK, PAD, UNK, encode
from esm2_hyperpod.pretraining.masking import IGNORED, REPLACEMENTS, crop_starts, mask_tokens


def mask(tokens, lengths, indices, seed=0, epoch=0, replace="all_tokens", probability=0.15):
    return mask_tokens(
        tokens, np.asarray(lengths), np.asarray(indices), seed, epoch, probability, REPLACEMENTS[replace]
    )


@pytest.mark.parametrize("replace", ["all_tokens", "amino_acids"])
def test_shares_of_masking(replace):
    rng = np.random.default_rng(0)
    lengths = np.full(4000, 250)
    tokens = rng.choice(np.asarray(AMINO_ACID_IDS, dtype=np.uint8), lengths.sum())
    masked, labels = mask(tokens, lengths, np.arange(4000), replace=replace)
    chosen = labels != IGNORED
    count = chosen.sum()
    deviation = 5 / np.sqrt(count)  # five standard errors of a share, at most
    assert abs(chosen.mean() - 0.15) < 5 * np.sqrt(0.15 * 0.85 / len(tokens))
    assert np.array_equal(labels[chosen], tokens[chosen])
    assert np.array_equal(masked[~chosen], tokens[~chosen])
    drawn_alike = 0.1 / len(REPLACEMENTS[replace])  # a random token can be the token itself
    assert (
        abs((masked[chosen] == MASK).mean() - 0.8 - (drawn_alike if replace == "all_tokens" else 0))
        < deviation
    )
    assert abs((masked[chosen] == tokens[chosen]).mean() - 0.1 - drawn_alike) < deviation
    others = masked[chosen & (masked != tokens) & (masked != MASK)]
    assert set(others.tolist()) <= set(REPLACEMENTS[replace].tolist())
    assert len(set(others.tolist())) == len(REPLACEMENTS[replace]) - (MASK in REPLACEMENTS[replace])


def test_special_tokens_are_never_masked():
    tokens = np.tile(np.asarray([CLS, PAD, EOS, UNK, MASK], dtype=np.uint8), 2000)
    masked, labels = mask(tokens, [len(tokens)], [0], probability=0.9)
    assert (labels == IGNORED).all() and np.array_equal(masked, tokens)


def test_fate_of_a_sequence_does_not_depend_on_its_company():
    a, b = encode(b"MKTAYIAKQRGAVLIMFWPST" * 20), encode(b"CYNQDEKRHMST" * 30)
    alone = mask(a, [len(a)], [17], seed=3, epoch=5)
    together = mask(np.concatenate([b, a]), [len(b), len(a)], [4, 17], seed=3, epoch=5)
    for one, both in zip(alone, together):
        assert np.array_equal(one, both[len(b) :])


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 6}, {"index": 18}])
def test_seed_epoch_and_index_each_change_the_masks(change):
    tokens = encode(b"MKTAYIAKQRGAVLIMFWPST" * 50)
    key = {"seed": 3, "epoch": 5, "index": 17}

    def chosen(seed, epoch, index):
        return mask(tokens, [len(tokens)], [index], seed, epoch)[1] != IGNORED

    first, second = chosen(**key), chosen(**{**key, **change})
    assert abs((first & second).mean() - 0.15**2) < 0.02  # as often as chance has it


def test_crops_are_uniform_and_only_where_needed():
    lengths = np.full(20_000, 110)
    starts = crop_starts(lengths, np.arange(20_000), 100, 0, 0)
    counts = np.bincount(starts, minlength=11)
    assert len(counts) == 11 and abs(counts / 20_000 - 1 / 11).max() < 5 * np.sqrt(0.083 / 20_000)
    assert (crop_starts(np.full(100, 99), np.arange(100), 100, 0, 0) == 0).all()
