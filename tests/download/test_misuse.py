"""What a user may get wrong about step 0: one line each, and nothing half-written."""

import bz2
import codecs
import fcntl
import gzip
import io
import random
import zipfile

import pytest
from helpers.misuse import files_in, own_process, refusal, table
from helpers.proteins import fasta, read_partitions, some_proteins
from helpers.steps import here

STEP_0 = "0.download_data.py"
PROTEINS = fasta(some_proteins(30))
ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as archive:
    archive.writestr("proteins.fasta", PROTEINS)


def nucleotides(letters: str) -> bytes:
    """FASTA of genes."""
    source = random.Random(0)
    return fasta({f"gene{number}": "".join(source.choices(letters, k=300)) for number in range(20)})


FILES = {
    "proteins.fasta": PROTEINS,
    "dna.fasta": nucleotides("ACGTACGTACGTN"),
    "rna.fa.gz": gzip.compress(nucleotides("acgu")),
    "nothing.fasta": b"",
    "blank.fasta": b"\n\n",
    "words.txt": b"MKVLLA\n",
    "table.csv": b"id,sequence\na,MKV\n",
    "1abc.pdb": b"HEADER    HYDROLASE\nATOM      1  N   MET A   1\n",
    "1abc.cif": b"data_1ABC\n#\n",
    "gene.gb": b"LOCUS       NM_000546\n",
    "entry.txt": b"ID   P53_HUMAN   Reviewed;\n",
    "reads.fastq": b"@read1\nACGT\n+\n!!!!\n",
    "family.sto": b"# STOCKHOLM 1.0\n",
    "page.fasta": b"<!DOCTYPE html><html><title>404</title>",
    "proteins.zip": ZIP.getvalue(),
    "sheet.xls": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "proteins.fasta.bz2": bz2.compress(PROTEINS),
    "twice.fasta.gz": gzip.compress(gzip.compress(PROTEINS)),
    "utf16.fasta": PROTEINS.decode().encode("utf-16"),
    "binary.fasta.gz": gzip.compress(b"\x7fELF\x00\x01binary"),
    "cut.fasta.gz": gzip.compress(fasta(some_proteins(300)))[:-500],
    "damaged.fasta.gz": gzip.compress(fasta(some_proteins(300)))[:-8] + bytes(8),
    "no_sequence.fasta": PROTEINS + b">last one\n",
    "no_id.fasta": PROTEINS + b">\nMKV\n",
    "control.fasta": fasta(some_proteins(3)) + bytes(range(32)),
}

ROWS = [
    ("wrong path", "--source gone.fasta", "gone.fasta: no such file; --source takes"),
    ("a folder", "--source .", ".: a folder without Parquet files; --source takes a FASTA"),
    ("another protocol", "--source ftp://ftp.uniprot.org/x.fasta",
     "x.fasta: no such file; --source takes https"),
    ("DNA", "--source dna.fasta", "dna.fasta: DNA or RNA, not proteins"),
    ("RNA", "--source rna.fa.gz", "--allow_nucleotides"),
    ("empty", "--source nothing.fasta", "nothing.fasta: empty"),
    ("blank lines only", "--source blank.fasta", "blank.fasta: empty"),
    ("no header", "--source words.txt", "not a FASTA: it starts with b'MKVLLA"),
    ("a table", "--source table.csv", "not a FASTA: it starts with b'id,sequence"),
    ("PDB", "--source 1abc.pdb", "not a FASTA but a PDB structure; fetch its sequences"),
    ("mmCIF", "--source 1abc.cif", "an mmCIF structure"),
    ("GenBank", "--source gene.gb", "a GenBank file; fetch its proteins as FASTA"),
    ("UniProt text", "--source entry.txt", "an EMBL or UniProt text file"),
    ("FASTQ", "--source reads.fastq", "a FASTQ file"),
    ("Stockholm", "--source family.sto", "a Stockholm alignment; convert it"),
    ("HTML error page", "--source page.fasta", "a web page or XML; does a login page stand in between?"),
    ("zip", "--source proteins.zip", "a zip archive or an Excel sheet; unzip it"),
    ("old Excel", "--source sheet.xls", "an Excel or Word file"),
    ("bzip2", "--source proteins.fasta.bz2", "compressed with bzip2; bunzip2 it"),
    ("gzip in gzip", "--source twice.fasta.gz", "gzip within gzip; gunzip it once"),
    ("UTF-16", "--source utf16.fasta", "UTF-16 text; convert it: iconv -f UTF-16"),
    ("a program", "--source binary.fasta.gz", r"not a FASTA: it starts with b'\x7fELF"),
    ("incomplete gzip", "--source cut.fasta.gz", "incomplete gzip, it ends after"),
    ("corrupt gzip", "--source damaged.fasta.gz", "corrupt gzip near compressed byte"),
    ("last record cut off", "--source no_sequence.fasta", "record 31 (last) at byte offset"),
    ("no id", "--source no_id.fasta", "has no id after '>'"),
    ("control characters", "--source control.fasta", "record 3 (UniRef50_P00002) at byte offset"),
    ("checksum of another file", f"--source proteins.fasta --checksum md5:{'0' * 32}", "its md5 is "),
    ("no checksum", "--source proteins.fasta --checksum md5:1", "--checksum takes md5: and 32"),
    ("misspelt flag", "--source proteins.fasta --num_partition 3", "did you mean --num_partitions?"),
    ("no flag before the path", "proteins.fasta", "a value follows its flag"),
    ("no partitions", "--source proteins.fasta --num_partitions 0", "--num_partitions 0: must be 1 or more"),
    ("a word for a number", "--source proteins.fasta --max_records all", "all: must be a whole number"),
    ("too many partitions", "--source proteins.fasta --num_partitions 1001",
     "--num_partitions: at most 1000"),
    ("an empty variable", "--source proteins.fasta --output_dir ''", "--output_dir is empty; is a variable"),
    ("two sizes", "--num_partitions 2 --max_records_per_partition 9", "not allowed with --num_partitions"),
    ("output is a file", "--source proteins.fasta --output_dir dna.fasta",
     "dna.fasta: File exists; choose another"),
    ("output below a file", "--source proteins.fasta --output_dir dna.fasta/csv", "a part of it is a file"),
    ("output in a system folder", "--source proteins.fasta --output_dir /proc/csv",
     "/proc/csv: No such file"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@table(ROWS)
def test_misuse(words, message, folder):
    assert message in refusal(
        STEP_0, words if "--output_dir" in words else f"{words} --output_dir OUT", folder
    )


def test_two_jobs_into_one_folder(folder, tmp_path):
    (tmp_path / "OUT").mkdir()
    with open(tmp_path / "OUT" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refusal(STEP_0, f"--source {folder}/proteins.fasta --output_dir OUT", tmp_path)
    assert "OUT: another process is writing there; wait for it to end" in line


def test_without_arguments_it_says_what_it_does_where_it_cannot_do_it(monkeypatch, tmp_path):
    monkeypatch.setenv("FSX_DIR", str(tmp_path / "not" / "here"))
    result = here(STEP_0, check=False)
    assert result.returncode == 1 and "Step 0: proteins from the web" in result.stderr
    assert "python 0.download_data.py --source my.fasta.gz --output_dir csv" in result.stderr
    assert (
        f"error: {tmp_path}/not is not here, and no --output_dir is given" in result.stderr.splitlines()[-1]
    )


MEANT = {  # what is plainly meant is done
    "proteins": PROTEINS,
    "byte-order mark": codecs.BOM_UTF8 + PROTEINS,
    "Windows line ends": PROTEINS.replace(b"\n", b"\r\n"),
    "blank lines": b"\n \n" + PROTEINS.replace(b"\n>", b"\n\n>"),
}


@pytest.mark.parametrize("content", MEANT.values(), ids=MEANT)
def test_meant(content, tmp_path, monkeypatch):
    source = tmp_path / 'it\'s my "data".fasta'
    source.write_bytes(content)
    monkeypatch.setenv("HOME", str(tmp_path))
    with own_process():
        result = here(STEP_0, "--source", source, "--output_dir=~/a b", "--num_partitions", 3)
    rows = [row for rows in read_partitions(tmp_path / "a b") for row in rows]
    assert sorted(rows) == sorted(some_proteins(30).items())
    assert result.stderr == ""  # a bar is for what takes long
    assert len(result.stdout.splitlines()) == 1  # nor does room on the disk matter here


def test_nucleotides_are_taken_where_they_are_wanted(folder, tmp_path):
    here(STEP_0, "--source", folder / "dna.fasta", "--output_dir", tmp_path, "--allow_nucleotides")
    assert len(files_in(tmp_path)) == 51
