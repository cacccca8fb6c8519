"""score_variants.py: fair-esm's numbers for tables and scans, several proteins, windows, interruptions."""

import csv

import numpy as np
import pytest
import torch
from helpers.inference import call, script

from esm2_hyperpod.alphabet import AMINO_ACIDS
from esm2_hyperpod.inference import variant_scores
from esm2_hyperpod.inference.variants import WildType, scan
from esm2_hyperpod.streaming.windows import window_of

SEQUENCE = "MKTAYIAKQRQISFVKSHFS"
MUTANTS = ["K25A", "A27G:K31R", "WT", "S43W", "t26c:Q32E:R33K"]  # the first residue is number 24
ALL = "masked-marginals wt-marginals pseudo-ppl".split()


def rows_of(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class Rules:
    """What fair-esm's examples/variant-prediction/predict.py computes of one sequence."""

    def __init__(self, meta):
        self.model, self.convert = meta
        self.index = self.model.alphabet.get_idx

    @torch.no_grad()
    def tokens(self, sequence: str) -> torch.Tensor:
        return self.convert([("protein1", sequence)])[2]

    @torch.no_grad()
    def log_probabilities(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(self.model(tokens)["logits"], dim=-1)

    def masked(self, sequence: str) -> torch.Tensor:
        """[tokens, 33], each token masked in turn; in one batch, for its time."""
        tokens = self.tokens(sequence).repeat(len(sequence) + 2, 1)
        tokens.fill_diagonal_(self.model.alphabet.mask_idx)
        return torch.stack([rows[at] for at, rows in enumerate(self.log_probabilities(tokens))])

    def marginal(self, table: torch.Tensor, sequence: str, mutant: str, offset: int) -> float:
        total = 0.0
        for part in mutant.upper().split(":"):
            before, position, after = part[0], int(part[1:-1]) - offset, part[-1]
            assert sequence[position] == before
            total += float(table[1 + position, self.index(after)] - table[1 + position, self.index(before)])
        return total

    def pseudo_ppl(self, sequence: str) -> tuple[float, float]:
        table = self.masked(sequence)
        own = [float(table[1 + at, self.index(letter)]) for at, letter in enumerate(sequence)]
        return sum(own[at - 1] for at in range(1, len(sequence) - 1)), sum(own)


@pytest.fixture(scope="module")
def rules(meta) -> Rules:
    return Rules(meta)


def mutated(mutant: str, offset: int) -> str:
    residues = list(SEQUENCE)
    for part in mutant.upper().split(":") if mutant != "WT" else []:
        residues[int(part[1:-1]) - offset] = part[-1]
    return "".join(residues)


def test_a_table_is_scored_as_fair_esms_script_does(model_folder, rules, tmp_path):
    table = tmp_path / "dms.csv"
    table.write_text("measured,mutant\n" + "".join(f'"{n},5",{name}\n' for n, name in enumerate(MUTANTS)))
    words = ["--model_name_or_path", model_folder, "--sequence", SEQUENCE, "--mutants", table]
    call(
        "score_variants.py", *words, "--first_residue", 24, "--scoring", *ALL, "--output_dir", tmp_path / "o"
    )
    rows = rows_of(tmp_path / "o" / "variants.csv")
    assert [row["measured"] for row in rows] == [f"{n},5" for n in range(5)]
    masked, plain = rules.masked(SEQUENCE), rules.log_probabilities(rules.tokens(SEQUENCE))[0]
    for row in rows:
        name = row["mutant"]
        expected = (
            [0, 0] if name == "WT" else [rules.marginal(t, SEQUENCE, name, 24) for t in (masked, plain)]
        )
        expected += rules.pseudo_ppl(mutated(name, 24))
        columns = "masked_marginals wt_marginals pseudo_ppl pseudo_log_likelihood".split()
        assert [float(row[column]) for column in columns] == pytest.approx(expected, abs=1e-4), name


def test_a_scan_is_every_substitution_and_the_picture_shows_it(model_folder, rules, tmp_path, capsys):
    words = ["--model_name_or_path", model_folder, "--sequence", SEQUENCE, "--scan", "--output_dir", tmp_path]
    call("score_variants.py", *words)
    rows = rows_of(tmp_path / "variants.csv")
    expected = [
        f"{was}{at}{new}" for at, was in enumerate(SEQUENCE, 1) for new in sorted(AMINO_ACIDS) if new != was
    ]
    assert [row["mutant"] for row in rows] == expected
    masked = rules.masked(SEQUENCE)
    scores = [rules.marginal(masked, SEQUENCE, name, 1) for name in expected]
    assert [float(row["masked_marginals"]) for row in rows] == pytest.approx(scores, abs=1e-4)
    assert (tmp_path / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert "the single substitutions of 1 protein" in capsys.readouterr().out
    call("score_variants.py", *words)
    assert "finished already" in capsys.readouterr().out


def test_several_proteins_each_have_their_variants(model_folder, rules, tmp_path):
    (tmp_path / "p.fasta").write_text(f">a\n{SEQUENCE}\n>b something\n{SEQUENCE[::-1].lower()}\n")
    (tmp_path / "m.csv").write_text("id,mutant\nb,S1A\na,M1A\nb,H3C\n")
    words = [
        "--model_name_or_path",
        model_folder,
        "--fasta",
        tmp_path / "p.fasta",
        "--output_dir",
        tmp_path / "o",
    ]
    call("score_variants.py", *words, "--mutants", tmp_path / "m.csv")
    tables = {"a": SEQUENCE, "b": SEQUENCE[::-1]}
    for row in rows_of(tmp_path / "o" / "variants.csv"):
        sequence = tables[row["id"]]
        expected = rules.marginal(rules.masked(sequence), sequence, row["mutant"], 1)
        assert float(row["masked_marginals"]) == pytest.approx(expected, abs=1e-4)


def test_in_a_long_protein_the_window_around_the_position_is_read(model_folder, rules, tmp_path):
    sequence, position = SEQUENCE * 3, 40
    (tmp_path / "m.csv").write_text(f"mutant\n{sequence[position]}{position + 1}W\n")
    words = ["--model_name_or_path", model_folder, "--sequence", sequence, "--mutants", tmp_path / "m.csv"]
    call("score_variants.py", *words, "--max_length", 32, "--output_dir", tmp_path / "o")
    window = window_of(position, len(sequence), 32)
    part = sequence[window.start : window.stop]
    name = f"{sequence[position]}{position - window.start}W"
    expected = rules.marginal(rules.masked(part), part, name, 0)
    found = rows_of(tmp_path / "o" / "variants.csv")[0]["masked_marginals"]
    assert float(found) == pytest.approx(expected, abs=1e-4)


def test_interrupted_it_is_resumed_to_the_same_bytes(model_folder, tmp_path, monkeypatch):
    module = script("score_variants.py")
    monkeypatch.setattr(module, "CHUNK", 100)
    words = ["--model_name_or_path", model_folder, "--sequence", SEQUENCE, "--scan", "--scoring", *ALL[:2]]
    call("score_variants.py", *words, "--output_dir", tmp_path / "whole")
    computed, plain = [], module.scores

    def interrupted(model, chunk, scoring, *more):
        computed.append(len(chunk))
        if len(computed) == 4:
            raise KeyboardInterrupt
        return plain(model, chunk, scoring, *more)

    monkeypatch.setattr(module, "scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call("score_variants.py", *words, "--output_dir", tmp_path / "out")
    call("score_variants.py", *words, "--output_dir", tmp_path / "out")
    assert len(computed) == 4 + 3 * 2  # of four chunks, the one that was broken off is done again
    for name in ("variants.csv", "variants.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_positions_are_masked_once_for_all_their_substitutions(monkeypatch):
    asked = []
    monkeypatch.setattr(
        variant_scores,
        "masked_log_probabilities",
        lambda model, places, length: asked.append(places) or np.zeros((len(places), 33)),
    )
    variants = list(scan([WildType("a", SEQUENCE)], 1))
    assert variant_scores.scores(None, variants, "masked-marginals", 1024).shape == (len(SEQUENCE) * 19, 1)
    assert asked == [[(SEQUENCE, at) for at in range(len(SEQUENCE))]]
