"""Predictions: batches by length, files that are whole, or resumed to the same bytes."""

import numpy as np
import pytest
from helpers.localization_example import CPU, save, settings_of, untuned, write_fasta
from hypothesis import given
from hypothesis import strategies as st

from esm2_hyperpod.alphabet import AMINO_ACIDS, encode
from esm2_hyperpod.localization import prediction as localization_prediction
from esm2_hyperpod.localization.encoding import crop
from esm2_hyperpod.localization.prediction import Predictor, length_batches, predict_logits


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(50, 600))
def test_batches_by_length_hold_everything_once_within_the_budget(lengths, tokens):
    batches = length_batches(lengths, tokens)
    assert sorted(i for part in batches for i in part) == list(range(len(lengths)))
    for part in batches:
        assert len(part) == 1 or len(part) * max(lengths[i] for i in part) <= tokens


@given(st.text(AMINO_ACIDS, max_size=60), st.integers(4, 40), st.sampled_from(["ends", "start", "end"]))
def test_crop_keeps_what_it_says(sequence, longest, how):
    kept = crop(sequence, longest, how)
    room = longest - 2
    assert len(kept) == min(len(sequence), room)
    if len(sequence) > room:
        head = {"ends": room - room // 2, "start": room, "end": 0}[how]
        assert kept == sequence[:head] + sequence[len(sequence) - (room - head) :]


def test_prediction_does_not_depend_on_the_company(base):
    model = untuned(settings_of(base, tuning="head")).eval()
    ids = [encode(text) for text in (b"MKV", b"MKVLLAAGGDDEEKK" * 5, b"MW", b"MCCCCWWW" * 3)]
    together = predict_logits(model, ids, False)
    alone = np.concatenate([predict_logits(model, [row], False) for row in ids])
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.fixture
def predict(base, tmp_path, monkeypatch):
    """`predict_file` of a FASTA file into another, by a model of its own, in chunks of eight proteins."""
    monkeypatch.setattr(localization_prediction, "CHUNK", 8)
    settings = settings_of(base, tuning="head")
    save(untuned(settings), settings, tmp_path / "model")
    return Predictor(tmp_path / "model", CPU, bf16=False).predict_file


def test_a_prediction_asked_to_stop_leaves_whole_chunks(predict, tmp_path):
    write_fasta(tmp_path / "a.fasta", 20)
    files = (tmp_path / "a.fasta", tmp_path / "out.csv")
    assert predict(*files, stop_asked=lambda: True) is None
    assert len((tmp_path / "out.csv.partial").read_text().splitlines()) == 1 + 8
    assert predict(*files) == 20
    assert [row.split(",")[0] for row in (tmp_path / "out.csv").read_text().splitlines()[1:]] == [
        f"q{number}" for number in range(20)
    ]


def test_an_interrupted_prediction_is_resumed_to_the_same_bytes(predict, tmp_path, monkeypatch):
    fasta = tmp_path / "a.fasta"
    write_fasta(fasta, 30)
    fasta.write_text(fasta.read_text() + ">empty\n>lower case\nmkvllaX*\n")
    whole, resumed = tmp_path / "whole.csv", tmp_path / "resumed.csv"
    assert predict(fasta, whole) == 32
    rows = whole.read_text().splitlines()
    assert rows[31] == "empty,,,," and rows[32].startswith("lower,")

    calls = []

    def interrupted(model, ids, bf16):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(ids))
        return predict_logits(model, ids, bf16)

    with monkeypatch.context() as patch:
        patch.setattr(localization_prediction, "predict_logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict(fasta, resumed)
    assert not resumed.exists()
    partial = tmp_path / "resumed.csv.partial"
    partial.write_bytes(partial.read_bytes()[:-5])  # the last row did not reach the disk
    monkeypatch.setattr(
        localization_prediction,
        "predict_logits",
        lambda m, ids, bf16: (calls.append(len(ids)), predict_logits(m, ids, bf16))[1],
    )
    predict(fasta, resumed)
    assert resumed.read_bytes() == whole.read_bytes()
    assert calls == [8, 8, 8, 8, 8]  # the first chunk was kept, the incomplete second one done again
