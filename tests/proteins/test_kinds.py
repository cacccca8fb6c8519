"""Labels that are letters of residues or numbers: reading, cleaning, splitting."""

import numpy as np
import pyarrow as pa
import pytest
from helpers.labelled_example import proteins
from helpers.proteins import RESIDUES
from pyarrow import parquet

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.proteins.kinds import Letters, Numbers, targets
from esm2_hyperpod.proteins.labelled import Protein, clean, read_hub_dataset, read_proteins
from esm2_hyperpod.proteins.similarity import similar_families
from esm2_hyperpod.proteins.splits import make_splits

LETTERS, NUMBERS = Letters("-"), Numbers()


def row(name: str, sequence: str, label: str) -> Protein:
    return Protein(f"x:{name}", name, sequence, label)


def cleaned(kind, *rows: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Labels kept, reasons of the others."""
    kept, rejected = clean([row(str(n), *one) for n, one in enumerate(rows)], kind)
    return [protein.label for protein in kept], [one.reason for one in rejected]


# ---- letters ----------------------------------------------------------------------------------------


def test_three_lines_a_protein_as_caid_publishes_disorder(tmp_path):
    path = tmp_path / "disorder.fasta"
    path.write_text(">DP1\nMKVL\n0-11\n\n>DP2 test\r\nMA\r\n01\r\n")
    rows = list(read_proteins(path, LETTERS))
    assert [(p.where, p.id, p.sequence, p.label, p.test) for p in rows] == [
        (f"{path}:1", "DP1", "MKVL", "0-11", False),
        (f"{path}:5", "DP2", "MA", "01", True),
    ]
    path.write_text(">a\nMKVL\n>b\nMKV\nHHH\n")
    with pytest.raises(UserError, match=r"disorder\.fasta:1: not three lines a protein"):
        list(read_proteins(path, LETTERS))


def test_the_table_of_nvidias_recipe_and_lists_of_letters_or_numbers(tmp_path):
    sequences, letters, numbers = ["MKV", "MA"], ["H~E", "~~"], [[0, 1, None], [1, -100]]
    for name, labels in (("Secondary_structure", letters), ("labels", numbers)):
        parquet.write_table(pa.table({"Sequence": sequences, name: labels}), tmp_path / f"{name}.parquet")
    found = [[p.label for p in read_proteins(path, LETTERS)] for path in sorted(tmp_path.iterdir())]
    assert found == [letters, ["01-", "1-"]]
    (tmp_path / "hub").mkdir()
    (tmp_path / "Secondary_structure.parquet").rename(tmp_path / "hub" / "train.parquet")
    assert [p.label for p in read_hub_dataset(str(tmp_path / "hub"), LETTERS)["train"]] == letters


def test_letters_stay_with_their_residues():
    """Lower case, gaps and stop codons of the sequence go; so do their letters."""
    kept, reasons = cleaned(LETTERS, ("mk-v.*", "HH-E.-"), ("MK W*", "HCE"), ("MKC", " HE- "))
    assert (kept, reasons) == (["HHE", "HCE", "HE-"], [])
    kept, reasons = cleaned(
        LETTERS, ("MKV", "HHHH"), ("MKL", "H,H,H"), ("MKW", "H H"), ("MKC", "---"), ("MKF", ""), ("", "H")
    )
    assert kept == []
    assert reasons == [
        "4 labels for 3 residues",
        "5 labels for 3 residues",
        "' ' is no label: use letters, digits or signs",
        "no residue has a label: all are -",
        "no labels",
        "no sequence",
    ]


def test_a_class_that_training_lacks_is_rejected_with_its_protein():
    rows = [row(name, sequence, "HC" * 40) for name, sequence in proteins(40, 0)]
    rows = [Protein(r.where, r.id, r.sequence, r.label[: len(r.sequence)]) for r in rows]
    test = [row("a", "MKVWWWWWW", "HHHZCCCCC"), row("b", "MKVAAAAAA", "HHH--CCCC")]
    splits = make_splits({"train": rows, "test": test}, "similarity", 0, LETTERS)
    assert [protein.id for protein in splits.test] == ["b"]
    assert [(one.id, one.reason) for one in splits.rejected] == [("a", "no training protein has the label Z")]
    assert list(splits.facts["labels"]) == ["C", "H"]
    with pytest.raises(UserError, match="the test split is empty, x:a: no training protein has the label Z"):
        make_splits({"train": rows, "test": test[:1]}, "similarity", 0, LETTERS)


# ---- numbers ----------------------------------------------------------------------------------------


def test_numbers_are_read_and_what_is_none_is_not_used(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("sequence,target,set\nMKV,1.50,train\nMA,-2e-3,test\n")
    assert [(p.label, p.test) for p in read_proteins(path, NUMBERS)] == [("1.50", False), ("-2e-3", True)]
    kept, reasons = cleaned(
        NUMBERS, ("MKV", "1.50"), ("MA", "nan"), ("MC", "inf"), ("MD", "high"), ("ME", " "), ("MF", "1,5")
    )
    assert kept == ["1.5"]
    assert reasons == [
        "target nan is not finite",
        "target inf is not finite",
        "target 'high' is not a number",
        "no target",
        "target '1,5' is not a number",
    ]


def test_a_sequence_measured_twice():
    kept, reasons = cleaned(NUMBERS, ("MKV", "1.5"), ("MKV", "1.50"), ("MA", "2"), ("MA", "10"))
    assert kept == ["1.5"]
    assert reasons[0] == "duplicate of x:0"
    why = "the same sequence has 2 targets, 2.0 to 10.0; give one, such as their mean"
    assert reasons[1:] == [why, why]


def test_every_split_has_small_and_large_numbers():
    rows = [row(name, sequence, str(number)) for number, (name, sequence) in enumerate(proteins(200, 0))]
    splits = make_splits({"train": rows}, "random", 0, NUMBERS)
    for part in (splits.train, splits.validation, splits.test):
        assert np.histogram(targets(part), 5, (0, 200))[0].min() >= len(part) // 5 - max(1, len(part) // 40)
    assert splits.facts["target"]["mean"] == pytest.approx(targets(splits.train).mean())


def test_variants_of_one_protein_are_told_to_split_at_random():
    parent = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVVHSLAKWKRQTLG"
    rows = [row(str(n), parent[:n] + "W" + parent[n + 1 :], str(n)) for n in range(40)]
    with pytest.raises(UserError, match=r"in 1 groups of similar ones are too few .*, or --split random"):
        make_splits({"train": rows}, "similarity", 0, NUMBERS)
    assert len(make_splits({"train": rows}, "random", 0, NUMBERS).test) == 8


def test_a_library_of_variants_is_one_group_that_one_of_them_stands_for():
    """Beside unrelated proteins; all pairs of a large library would fill the memory."""
    random = np.random.default_rng(0)
    parent = "".join(random.choice(list(RESIDUES), 150))
    variants = {parent[:at] + letter + parent[at + 1 :] for at in range(0, 150, 10) for letter in RESIDUES}
    rows = [row(f"v{n}", text, str(n)) for n, text in enumerate(sorted(variants))]
    rows += [row(name, "".join(random.choice(list(RESIDUES), 90)), name[1:]) for name, _ in proteins(60, 0)]
    leader, pairs = similar_families([one.sequence for one in rows])
    assert len(variants) > 200 and len(set(leader[: len(variants)])) == 1 and pairs.nnz == 0
    splits = make_splits({"train": rows}, "similarity", 0, NUMBERS)
    homes = [{one.id[0] == "v" for one in part} for part in (splits.train, splits.validation, splits.test)]
    assert sorted(homes, key=len)[:2] == [{False}, {False}]  # the library is in one split
    splits = make_splits({"train": rows}, "random", 0, NUMBERS)
    assert splits.facts["test_proteins_like_a_training_protein"] == sum(p.id[0] == "v" for p in splits.test)


def test_too_little_to_learn_or_to_judge():
    rows = [row(name, sequence, "1.5") for name, sequence in proteins(40, 0)]
    with pytest.raises(UserError, match=r"targets of all \d+ training proteins are 1.5"):
        make_splits({"train": rows}, "random", 0, NUMBERS)
    rows = [row(name, sequence, str(n)) for n, (name, sequence) in enumerate(proteins(12, 0))]
    with pytest.raises(UserError, match=r"split has \d protein\(s\) with \d different target\(s\), too few"):
        make_splits({"train": rows}, "random", 0, NUMBERS)
