"""Reading, cleaning and splitting labelled proteins."""

import gzip
import itertools
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.proteins.labelled import Protein, clean, read_hub_dataset, read_proteins
from esm2_hyperpod.proteins.records import read_records
from esm2_hyperpod.proteins.similarity import group_similar, similar_pairs
from esm2_hyperpod.proteins.splits import make_splits, read_splits, write_splits

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(autouse=True)
def without_mmseqs(request, monkeypatch):
    """The splits of these tests are made with k-mers, installed or not; one test is about MMseqs2."""
    if "mmseqs" not in request.node.name:
        monkeypatch.setattr(shutil, "which", lambda _: None)


def random_protein(random, length=120):
    return "".join(random.choice(list(RESIDUES), length))


def mutated(random, sequence, share):
    return "".join(random.choice(list(RESIDUES)) if random.random() < share else r for r in sequence)


def labelled_families(random, families=40, members=4):
    """Families of homologues, each with one label of two."""
    rows = []
    for family in range(families):
        parent = random_protein(random)
        for member in range(members):
            name, label = f"f{family}m{member}", "Nucleus" if family % 2 else "Cytoplasm"
            rows.append(Protein(f"x:{name}", name, mutated(random, parent, 0.2), label))
    return rows


# ---- reading ----------------------------------------------------------------------------------------


def test_deeploc_1_headers(tmp_path):
    path = tmp_path / "deeploc.fasta"
    path.write_text(
        ">P1 Cell.membrane-M\nMKV\nLLA\n>P2 Lysosome/Vacuole-U test\r\nMAA\r\n>P3\nMMM\n>P4 my-own\nMC\n"
    )
    rows = list(read_proteins(path))
    assert [(p.id, p.sequence, p.label, p.test) for p in rows] == [
        ("P1", "MKVLLA", "Cell.membrane", False),
        ("P2", "MAA", "Lysosome/Vacuole", True),
        ("P3", "MMM", "", False),
        ("P4", "MC", "my-own", False),
    ]
    assert rows[1].where == f"{path}:4"


def test_csv_with_quotes_and_line_numbers(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffID,Label,Sequence\n"a, b",Nucleus,MKV\nc,,MAA\n', encoding="utf-8")
    rows = list(read_proteins(path))
    assert [(p.where, p.id, p.label, p.sequence) for p in rows] == [
        (f"{path}:2", "a, b", "Nucleus", "MKV"),
        (f"{path}:3", "c", "", "MAA"),
    ]


def test_deeploc_2_table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        ",ACC,Kingdom,Partition,Membrane,Cytoplasm,Nucleus,Extracellular,Sequence\n"
        "0,Q1,Metazoa,4,1.0,1.0,0.0,0.0,MKV\n1,Q2,Fungi,0,0.0,0.0,0.0,1.0,MAA\n"
    )
    assert [(p.id, p.label) for p in read_proteins(path)] == [("Q1", "Cytoplasm"), ("Q2", "Extracellular")]


def test_parquet_gzip_and_dataset_folder_give_the_same(tmp_path):
    table = pa.table({"id": ["a", "b"], "sequence": ["MKV", "MAA"], "label": ["X", "Y"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("id,sequence,label\na,MKV,X\nb,MAA,Y\n")
    folder = tmp_path / "dataset"
    folder.mkdir()
    parquet.write_table(table, folder / "train.parquet")
    found = [
        list(read_proteins(tmp_path / "a.parquet")),
        list(read_proteins(tmp_path / "a.csv.gz")),
        list(read_hub_dataset(str(folder))["train"]),
    ]
    for rows in found:
        assert [(p.id, p.sequence, p.label) for p in rows] == [("a", "MKV", "X"), ("b", "MAA", "Y")]


def write_hub_folder(folder, split, labels, feature):
    rows = {"seq": ["MKV" + "A" * n for n in range(len(labels))], "label": labels}
    features = datasets.Features({"seq": datasets.Value("string"), "label": feature})
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")


@pytest.mark.parametrize(
    ("feature", "labels", "expected"),
    [
        (datasets.Value("int64"), [0, 1, None], ["0", "1", ""]),
        (datasets.Value("float64"), [0.0, 1.0, float("nan")], ["0.0", "1.0", ""]),
        (datasets.Value("string"), ["X", "X|Y", None], ["X", "X|Y", ""]),
        (datasets.ClassLabel(names=["X", "Y"]), [0, 1, -1], ["X", "Y", ""]),
        (datasets.List(datasets.ClassLabel(names=["X", "Y"])), [[0], [0, 1], []], ["X", "X|Y", ""]),
        (datasets.List(datasets.Value("string")), [["Y"], ["Y", "X"], None], ["Y", "Y|X", ""]),
    ],
)
def test_labels_of_hub_datasets_as_they_are_published(tmp_path, feature, labels, expected):
    write_hub_folder(tmp_path / "hub", "train", labels, feature)
    write_hub_folder(tmp_path / "hub", "valid", labels[:1], feature)
    found = read_hub_dataset(str(tmp_path / "hub"))
    assert {name: [p.label for p in rows] for name, rows in found.items()} == {
        "train": expected,
        "validation": expected[:1],
    }


def test_a_vector_of_zeros_and_ones_is_not_taken_for_labels(tmp_path):
    write_hub_folder(tmp_path / "hub", "train", [[0, 1, 0]], datasets.List(datasets.Value("int64")))
    with pytest.raises(UserError, match="give the labels themselves"):
        list(read_hub_dataset(str(tmp_path / "hub"))["train"])


def test_a_column_of_places_holds_zeros_and_ones(tmp_path):
    (tmp_path / "a.csv").write_text("Sequence,Cytoplasm,Nucleus\nMKV,1.0,no\n")
    with pytest.raises(UserError, match=r"a\.csv:2: Nucleus is 'no'; it must be 0 or 1"):
        list(read_proteins(tmp_path / "a.csv"))


@given(
    st.lists(
        st.tuples(
            st.text("abcXYZ0189_|.", min_size=1, max_size=12), st.text(RESIDUES, min_size=1, max_size=200)
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 80),
    st.sampled_from(["\n", "\r\n"]),
)
def test_fasta_comes_back_whatever_the_line_width(tmp_path_factory, records, width, newline):
    path = tmp_path_factory.mktemp("fasta") / "a.fasta"
    lines = []
    for name, sequence in records:
        lines += [f">{name} words", *(sequence[at : at + width] for at in range(0, len(sequence), width))]
    path.write_text(newline.join(lines), newline="")
    assert [(r.id, r.sequence) for r in read_records(path)] == records


# ---- cleaning ---------------------------------------------------------------------------------------


def test_rows_that_cannot_be_used_are_listed_with_their_reason():
    def row(number, sequence, label):
        return Protein(f"f:{number}", f"p{number}", sequence, label)

    kept, rejected = clean(
        [
            row(1, "mkv*", "Nucleus"),
            row(2, " ", "Nucleus"),
            row(3, "XXXX", "Nucleus"),
            row(4, "MAA", " "),
            row(5, "MK1", "Nucleus"),
            row(6, "MKV", "Nucleus"),
            row(7, "MCC", "Nucleus"),
            row(8, "MCC", "Plastid"),
            row(9, "MDD", "Cytoplasm-Nucleus"),
            row(10, "MEE", "Plastid|Nucleus|Plastid"),
        ]
    )
    assert [(p.id, p.sequence, p.label) for p in kept] == [
        ("p1", "MKV", "Nucleus"),
        ("p10", "MEE", "Nucleus|Plastid"),
    ]
    reasons = {r.id: r.reason for r in rejected}
    assert reasons == {
        "p2": "no sequence",
        "p3": "unknown letters only",
        "p4": "no label",
        "p5": "no protein sequence: it contains '1'",
        "p6": "duplicate of f:1",
        "p7": "the same sequence has contradicting labels: Nucleus, Plastid",
        "p8": "the same sequence has contradicting labels: Nucleus, Plastid",
        "p9": "double label Cytoplasm-Nucleus, which DeepLoc 1.0 leaves out",
    }


# ---- splitting --------------------------------------------------------------------------------------


def test_homologues_stay_on_one_side():
    rows = labelled_families(np.random.default_rng(0))
    splits = make_splits({"train": rows}, "similarity", seed=1)
    sides = [{p.id.split("m")[0] for p in part} for part in (splits.train, splits.validation, splits.test)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert splits.facts["test_proteins_like_a_training_protein"] == 0
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [112, 16, 32]


def test_a_random_split_says_how_leaky_it_is():
    rows = labelled_families(np.random.default_rng(0))
    splits = make_splits({"train": rows}, "random", seed=1)
    assert splits.facts["test_proteins_like_a_training_protein"] > 0.9 * len(splits.test)
    assert splits.facts["origin"]["test"] == "random"


def test_published_test_marks_are_respected_and_kept_out_of_training():
    random = np.random.default_rng(0)
    rows = labelled_families(random)
    marked = [Protein(f"y:{i}", f"t{i}", random_protein(random), "Nucleus", test=True) for i in range(5)]
    splits = make_splits({"train": [*rows, *marked]}, "similarity", seed=1)
    assert {p.id for p in splits.test} == {p.id for p in marked}
    assert splits.facts["origin"]["test"] == "published test mark"
    assert splits.facts["origin"]["validation"] == "similarity"


def test_training_proteins_that_are_held_out_and_unseen_labels_are_rejected():
    random = np.random.default_rng(0)
    train = labelled_families(random)
    test = [Protein("t", "same", train[0].sequence, train[0].label), Protein("u", "odd", "MKVLLA", "Plastid")]
    splits = make_splits({"train": train, "validation": train[4:8], "test": test}, "similarity", seed=1)
    reasons = {r.id: r.reason for r in splits.rejected}
    assert reasons["f0m0"] == "held out for evaluation: t"
    assert reasons["odd"] == "no training protein has the label Plastid"
    assert len(splits.train) == len(train) - 5


def test_too_few_proteins_is_one_clear_line():
    rows = labelled_families(np.random.default_rng(0), families=3)
    with pytest.raises(UserError, match="too few to split"):
        make_splits({"train": rows}, "similarity", seed=1)


def test_rows_of_which_none_can_be_used_are_one_clear_line():
    rows = [Protein("x:1", "a", "", "Nucleus"), Protein("x:2", "b", "MKV", "")]
    with pytest.raises(UserError, match="not one train protein can be used; the first, x:1: no sequence"):
        make_splits({"train": rows}, "similarity", seed=1)


def test_splits_come_back_from_disk(tmp_path):
    rows = labelled_families(np.random.default_rng(0))
    splits = make_splits({"train": [*rows, Protein("z", "bad", "", "X")]}, "similarity", seed=1)
    write_splits(splits, tmp_path, {"seed": 1})
    back = read_splits(tmp_path, made_by="x")
    assert (back.train, back.validation, back.test) == (splits.train, splits.validation, splits.test)
    assert [(r.id, r.reason) for r in back.rejected] == [("bad", "no sequence")]


def test_grouping_separates_strangers_and_ignores_repeats():
    random = np.random.default_rng(0)
    strangers = [random_protein(random, 300) for _ in range(60)]
    repeats = [random_protein(random, 100) + "Q" * 60 + "SR" * 30 for _ in range(5)]
    sequences = [*strangers, *repeats, mutated(random, strangers[0], 0.4)]
    groups, method = group_similar(sequences, similar_pairs(sequences))
    assert len(set(groups)) == 65 and groups[0] == groups[-1]
    assert "5-mers" in method


def test_kmer_groups_join_most_of_what_is_known_to_be_related(real_data):
    proteins, rejected = clean(read_proteins(real_data / "deeploc_dev.fasta"))
    assert sum("double label" in r.reason for r in rejected) == 23
    splits = make_splits({"train": proteins}, "random", seed=0)
    # MMseqs2 at 30% identity finds relatives for about a quarter of a random test split of this sample.
    assert 0.15 < splits.facts["test_proteins_like_a_training_protein"] / len(splits.test) < 0.35


def test_a_motif_makes_no_relatives_but_close_variants_do():
    random = np.random.default_rng(0)
    strangers = [random_protein(random, 200) for _ in range(400)]
    with_motif = [text[:90] + "CGHSPWKDEY" + text[90:] for text in strangers[:60]]
    assert similar_pairs([*with_motif, *strangers[60:]]).nnz == 0
    variants = [mutated(random, strangers[0], 0.02) for _ in range(50)]
    assert similar_pairs([*variants, *strangers[1:]]).nnz == 50 * 49


def test_training_proteins_like_a_held_out_one_are_dropped_and_listed():
    random = np.random.default_rng(0)
    halves = [random_protein(random, 60) for _ in range(41)]
    chain = [
        left + right for left, right in itertools.pairwise(halves)
    ]  # each is like the next: no clean groups
    rows = [Protein(f"x:{n}", f"p{n}", text, "AB"[n % 2]) for n, text in enumerate(chain)]
    splits = make_splits({"train": rows}, "similarity", seed=1)
    dropped = [r for r in splits.rejected if r.reason == "similar to a protein held out for evaluation"]
    assert dropped and len(splits.train) + len(splits.validation) + len(splits.test) + len(dropped) == 40
    assert splits.facts["test_proteins_like_a_training_protein"] == 0


@pytest.mark.skipif(not shutil.which("mmseqs"), reason="MMseqs2 is not installed")
def test_mmseqs_keeps_homologues_together():
    rows = labelled_families(np.random.default_rng(0))
    splits = make_splits({"train": rows}, "similarity", seed=1)
    assert "MMseqs2" in splits.facts["grouping"]
    assert splits.facts["test_proteins_like_a_training_protein"] == 0
