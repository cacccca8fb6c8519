"""fill_masks.py: transformers' probabilities, and perplexity by fair-esm's log-probabilities."""

import csv
import math

import pytest
import torch
from helpers.inference import call
from transformers import AutoTokenizer, EsmForMaskedLM, pipeline

from esm2_hyperpod.alphabet import AMINO_ACIDS

SEQUENCE = "MKTAYIAKQRQISFVKSHFS"


def rows_of(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_masks_are_filled_as_transformers_pipeline_does(model_folder, tmp_path):
    sequence = "mkt<mask>YIAKQRQ<MASK>SFV"
    words = ["--model_name_or_path", model_folder, "--sequence", sequence, "--output_dir", tmp_path]
    call("fill_masks.py", *words, "--top_k", 20)
    model = EsmForMaskedLM.from_pretrained(model_folder)
    fill = pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained(model_folder))
    theirs = fill(sequence.upper().replace("<MASK>", "<mask>"), top_k=33)
    rows = rows_of(tmp_path / "masks.csv")
    for number, position in enumerate((4, 12)):
        best = [(one["token_str"], one["score"]) for one in theirs[number] if one["token_str"] in AMINO_ACIDS]
        ours = [row for row in rows if row["position"] == str(position)]
        assert [row["filled"] for row in ours] == [residue for residue, _ in best]
        assert [float(row["probability"]) for row in ours] == pytest.approx([p for _, p in best], abs=2e-6)
        assert [row["rank"] for row in ours] == [str(rank) for rank in range(1, 21)]


@torch.no_grad()
def test_given_positions_are_masked_one_at_a_time(model_folder, tmp_path):
    (tmp_path / "p.fasta").write_text(f">a\n{SEQUENCE}\n>b\n{SEQUENCE[::-1]}\n")
    words = ["--model_name_or_path", model_folder, "--fasta", tmp_path / "p.fasta", "--output_dir", tmp_path]
    call("fill_masks.py", *words, "--positions", 3, 9, "--top_k", 1)
    model, tokenizer = (
        EsmForMaskedLM.from_pretrained(model_folder),
        AutoTokenizer.from_pretrained(model_folder),
    )
    rows = rows_of(tmp_path / "masks.csv")
    assert [(row["id"], row["position"]) for row in rows] == [("a", "3"), ("a", "9"), ("b", "3"), ("b", "9")]
    for row in rows:
        sequence = SEQUENCE if row["id"] == "a" else SEQUENCE[::-1]
        ids = tokenizer(sequence, return_tensors="pt")["input_ids"]
        assert row["residue"] == sequence[int(row["position"]) - 1]
        ids[0, int(row["position"])] = tokenizer.mask_token_id
        chosen = model(ids).logits[0, int(row["position"])].softmax(-1)[4:24]
        assert float(row["probability"]) == pytest.approx(float(chosen.max()), abs=2e-6)


@torch.no_grad()
def test_perplexity_is_of_each_residue_masked_alone(model_folder, meta, tmp_path, capsys):
    proteins = {"a": SEQUENCE, "b": "MW"}
    (tmp_path / "p.fasta").write_text("".join(f">{name}\n{text}\n" for name, text in proteins.items()))
    words = ["--model_name_or_path", model_folder, "--fasta", tmp_path / "p.fasta", "--output_dir", tmp_path]
    call("fill_masks.py", *words, "--perplexity")
    model, convert = meta
    likelihoods = {}
    for row in rows_of(tmp_path / "perplexity.csv"):
        text, total = proteins[row["id"]], 0.0
        for position in range(1, len(text) + 1):
            tokens = convert([("x", text)])[2]
            true = int(tokens[0, position])
            tokens[0, position] = model.alphabet.mask_idx
            total += float(torch.log_softmax(model(tokens)["logits"], -1)[0, position, true])
        likelihoods[row["id"]] = total
        assert float(row["log_likelihood"]) == pytest.approx(total, abs=1e-4)
        assert float(row["perplexity"]) == pytest.approx(math.exp(-total / len(text)), rel=1e-5)
    of_all = math.exp(-sum(likelihoods.values()) / sum(map(len, proteins.values())))
    assert f"perplexity of all 22 residues: {of_all:.4f}" in capsys.readouterr().out
