"""What a user may get wrong about step 1: one line each, and nothing half-written."""

import fcntl
import json
import shutil

import pytest
from helpers.misuse import refusal, table
from helpers.proteins import fasta, some_proteins, write_fasta
from helpers.steps import error_line, here, load, manifest, step_0, step_1

STEP_1 = "1.tokenize_uniref_csv.py"
AGAIN = "make it again with: python 0.download_data.py --output_dir"

ROWS = [
    ("step 0 left out", "--input_dir gone", "gone: no such folder; make it with: python 0.download_data.py"),
    ("step 0 unfinished", "--input_dir begun",
     "unfinished (it has no manifest.json); finish it with: python"),
    ("a path with spaces", "--input_dir 'my data'",
     "finish it with: python 0.download_data.py --output_dir '/"),
    ("the FASTA", "--input_dir proteins.fasta",
     "proteins.fasta: a file; --input_dir takes a folder that step 0 makes"),
    ("a partition", "--input_dir csv/x000.csv", "x000.csv: a file; --input_dir takes a folder"),
    ("its own output", "--input_dir arrow",
     "arrow: holds what another step made; give the folder of: python 0.download_data.py"),
    ("a broken manifest", "--input_dir torn", "manifest.json: not JSON"),
    ("another manifest", "--input_dir foreign", "foreign: holds what another step made"),
    ("a changed partition", "--input_dir changed", f"it has changed, or is corrupt); {AGAIN}"),
    ("a partition gone", "--input_dir less", f"x003.csv: is gone; {AGAIN}"),
    ("too few records", "--input_dir few", "need about 100 records: take more"),
    ("no partition large enough", "--input_dir csv --min_length 9999", "all 300 records have fewer residues"),
    ("shares of more than all", "--input_dir csv --train_size 0.8 --validation_size 0.2 --test_size 0.1",
     "add up to more than 1; make them smaller"),
    ("a share of 1.5", "--input_dir csv --test_size 1.5", "--test_size 1.5: takes a count such as 500"),
    ("a size below 0", "--input_dir csv --test_size -3", "--test_size -3: takes a count"),
    ("a word for a size", "--input_dir csv --validation_size some", "some: takes a count"),
    ("no residues", "--input_dir csv --max_length 3", "--max_length 3: must be 4 or more"),
    ("no processes", "--input_dir csv --num_proc 0", "--num_proc 0: must be 1 or more"),
    ("an unknown choice", "--input_dir csv --long_sequences cut", "cut: not one of"),
    ("misspelt flag", "--input_dir csv --validation_sise 9", "did you mean --validation_size?"),
    ("another program's flag", "--input_dir csv --source x", "unknown: --source x"),
    ("no such clusters", "--input_dir csv --clusters gone.tsv", "gone.tsv: no such file; --clusters takes"),
    ("clusters of the wrong kind", "--input_dir csv --clusters proteins.fasta", "its lines hold no tab"),
    ("other options than before", "--input_dir csv --output_dir arrow --seed 7",
     "seed=42, this run asks for 7"),
    ("output is a file", "--input_dir csv --output_dir proteins.fasta",
     "proteins.fasta: File exists; choose"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    step_0(write_fasta(folder / "proteins.fasta", some_proteins(300)), folder / "csv", "--num_partitions", 5)
    step_1(folder / "csv", folder / "arrow")
    step_0(write_fasta(folder / "few.fasta", some_proteins(2)), folder / "few", "--num_partitions", 2)
    for name in ("begun", "my data", "torn", "foreign", "changed", "less"):
        shutil.copytree(folder / "csv", folder / name)
    (folder / "begun/manifest.json").unlink()
    (folder / "my data/manifest.json").unlink()
    (folder / "torn/manifest.json").write_text('{"options": ')
    (folder / "foreign/manifest.json").write_text(json.dumps([1]))
    (folder / "changed/x002.csv").write_bytes((folder / "csv/x002.csv").read_bytes()[:-20])
    (folder / "less/x003.csv").unlink()
    return folder


@table(ROWS)
def test_misuse(words, message, folder, tmp_path):
    words = words if "--output_dir" in words else f"{words} --output_dir {tmp_path / 'OUT'}"
    assert message in refusal(STEP_1, words, folder)
    assert not (tmp_path / "OUT" / "manifest.json").exists()


def test_two_jobs_into_one_folder(folder, tmp_path):
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refusal(STEP_1, f"--input_dir csv --output_dir {tmp_path}", folder)
    assert f"{tmp_path}: another process is writing there; wait for it to end" in line


def test_without_arguments_it_says_what_it_does_where_it_cannot_do_it(monkeypatch, tmp_path):
    monkeypatch.setenv("FSX_DIR", str(tmp_path))
    result = here(STEP_1, check=False)
    assert result.returncode == 1 and "Step 1: csv/ of step 0 -> processed/arrow" in result.stderr
    assert f"error: {tmp_path}/csv holds nothing of step 0" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(("gaps", "kept"), [("drop", "MKVLLA"), ("keep", "MK--VL.LA-")])
def test_an_alignment_is_counted_and_done_as_asked(tmp_path, gaps, kept):
    aligned = fasta(some_proteins(200)) + b">aligned\nMK--VL.LA-\n>gaps\n---\n"
    (tmp_path / "a.fasta").write_bytes(aligned)
    step_0(tmp_path / "a.fasta", tmp_path / "csv", "--num_partitions", 2)
    sizes = "--validation_size", "0.2", "--test_size", 0
    result = step_1(tmp_path / "csv", tmp_path / "arrow", *sizes, "--gaps", gaps)
    tokens = {name: ids for split in load(tmp_path / "arrow").values() for name, ids in split.items()}
    assert len(tokens["aligned"]) == len(kept) + 2 and ("gaps" in tokens) == (gaps == "keep")
    dropped = 7 if gaps == "drop" else 0
    assert manifest(tmp_path / "arrow")["changed_residues"]["gaps_dropped"] == dropped
    assert ("7 gaps (- and .) were dropped: the sequences seem to come from an alignment" in result.stdout
            ) == bool(dropped)  # fmt: skip
    assert ("--gaps keep" in result.stdout) == bool(dropped)

    # as it was before there was a choice: gaps were kept, and a folder without gaps is the same either way
    younger = manifest(tmp_path / "arrow")
    del younger["options"]["gaps"]
    (tmp_path / "arrow" / "manifest.json").write_text(json.dumps(younger))
    again = step_1(tmp_path / "csv", tmp_path / "arrow", *sizes, check=False)
    if gaps == "drop":
        assert "already made" in again.stdout
    else:
        assert "was made with gaps='keep', this run asks for 'drop'" in error_line(again)
        assert "already made" in step_1(tmp_path / "csv", tmp_path / "arrow", *sizes, "--gaps", "keep").stdout
