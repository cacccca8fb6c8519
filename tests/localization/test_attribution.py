"""Attributions: complete, in their place, of every kind of model; picture and table of a file."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.localization_example import COUNTS, CPU, save, settings_of, untuned

from esm2_hyperpod.alphabet import AMINO_ACIDS, TOKENS, encode
from esm2_hyperpod.localization.attribution import TOLERANCE, Attribution, integrated_gradients
from esm2_hyperpod.localization.prediction import Predictor
from esm2_hyperpod.localization.settings import Settings
from esm2_hyperpod.proteins.records import Record

SEQUENCE = "MKVLLAAGGDDEEKKWWCHSPXTFYNQR"


def tuned(base: Path, **changes) -> tuple[torch.nn.Module, Settings]:
    """A model whose head and queries are strong enough for logits to differ."""
    settings = settings_of(base, **changes)
    torch.manual_seed(1)
    model = untuned(settings).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classifier" in name or "lora_" in name:
                parameter.normal_(std=0.2 if "lora_" in name else 0.5)
    return model, settings


def explained(model: torch.nn.Module, settings: Settings, folder: Path) -> list[Attribution]:
    """Why `SEQUENCE` gets the labels that it gets."""
    save(model, settings, folder)
    return Predictor(folder, CPU, bf16=False).explain(Record("p", SEQUENCE, 1))


@pytest.mark.parametrize(
    ("tuning", "pooling"), [("qlora", "mean"), ("lora", "attention"), ("full", "cls"), ("head", "mean")]
)
def test_attributions_sum_to_the_logit_less_that_of_average_residues(base, tuning, pooling):
    model, _ = tuned(base, tuning=tuning, pooling=pooling)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = encode(SEQUENCE.encode())
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    logits = []
    for average in (True, False):
        vectors = plain.esm.embeddings.word_embeddings.weight[tokens].detach().clone()
        if average:
            twenty = plain.esm.embeddings.word_embeddings.weight[[TOKENS.index(r) for r in AMINO_ACIDS]]
            vectors[:, 1:-1] = twenty.mean(dim=0)
        # Token dropout scales what no <mask> is in by what training left of it.
        logits.append(plain(inputs_embeds=0.88 * vectors).logits[0].detach().double().numpy())
    differences = logits[1] - logits[0]
    assert max(abs(differences)) > 10 * TOLERANCE
    for label, difference in enumerate(differences):
        value, gap = integrated_gradients(model, ids, label)
        assert len(value) == len(SEQUENCE)
        assert value.sum() == pytest.approx(difference, abs=TOLERANCE + 1e-4)
        assert gap == pytest.approx(value.sum() - difference, abs=1e-4)


def test_one_residue_that_matters_gets_it_all(base):
    """With attention off and one position read, only the residue there can carry the decision."""
    model, _ = tuned(base, tuning="full", pooling="cls")
    with torch.no_grad():
        for layer in model.esm.encoder.layer:
            layer.attention.output.dense.weight.zero_()
    position = 5
    model.classifier.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, position:],))
    value, _ = integrated_gradients(model, encode(SEQUENCE.encode()), 0)
    assert abs(value[position - 1]) > 0.1
    assert np.delete(value, position - 1) == pytest.approx(0.0, abs=1e-6)


def test_positions_of_a_cropped_protein_are_those_of_the_whole(base, tmp_path):
    (found,) = explained(*tuned(base, max_seq_length=12), tmp_path)
    assert found.position.tolist() == [1, 2, 3, 4, 5, 24, 25, 26, 27, 28]
    assert found.residues == SEQUENCE[:5] + SEQUENCE[-5:]
    assert found.label in COUNTS and 1 / 3 < found.probability <= 1


def test_each_of_several_labels_is_explained(base, tmp_path):
    model, settings = tuned(base, multi_label=True)
    with torch.no_grad():
        model.get_base_model().classifier.modules_to_save["default"].out_proj.bias += torch.tensor(
            [9.0, -9.0, 9.0]
        )
    first, second = explained(model, settings, tmp_path)
    assert (first.label, second.label) == ("Cytoplasm", "Nucleus")
    assert not np.allclose(first.value, second.value)


def test_the_table_of_a_file_and_what_makes_it_current(base, tmp_path):
    model, settings = tuned(base, tuning="full")
    fasta, output = tmp_path / "a.fasta", tmp_path / "attributions.csv"
    save(model, settings, tmp_path / "model")
    predictor = Predictor(tmp_path / "model", CPU, bf16=False)
    fasta.write_text(f">empty\n>one x\n{SEQUENCE.lower()}*\n>two\nMKV\n>three\nMCW\n")
    assert predictor.explain_file(fasta, output, 2, stop_asked=lambda: True) is None and not output.exists()
    assert [one.id for one in predictor.explain_file(fasta, output, 2)] == ["one", "two"]
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert "".join(row["residue"] for row in rows) == SEQUENCE + "MKV"
    assert [int(row["position"]) for row in rows] == [*range(1, 29), 1, 2, 3]
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert predictor.is_current(output, fasta, 2)
    assert not predictor.is_current(output, fasta, 3)
    assert not Predictor(tmp_path / "model", CPU, bf16=True).is_current(output, fasta, 2)
    fasta.write_text(">one\nMKV\n")
    assert not predictor.is_current(output, fasta, 2)
