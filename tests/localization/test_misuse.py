"""What a user may get wrong about fine-tuning and prediction: one line each, and no adapter."""

import gzip
import io
import random
import zipfile
from collections.abc import Callable

import pytest
from helpers.labelled_example import proteins
from helpers.localization_example import save, settings_of, untuned, write_fasta, write_labelled
from helpers.misuse import own_process, refusal, table
from helpers.steps import here

from esm2_hyperpod.artifacts import only_writer

SCRIPT = "finetune_localization.py"
MODEL = "--model_name_or_path base --output_dir OUT"
TRAIN = f"{MODEL} --train_file data.csv"
RESIDUE = f"{MODEL} --task residue --train_file"
NUMBER = f"{MODEL} --task regression --train_file"
PREDICT = "--model_name_or_path tuned --output_dir OUT --predict_file"
ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as archive:
    archive.writestr("xl/workbook.xml", "<workbook/>")


def genes(header: str) -> bytes:
    """FASTA of DNA."""
    source = random.Random(0)
    return "".join(f">g{n} {header}\n{''.join(source.choices('ACGT', k=90))}\n" for n in range(40)).encode()


def rows(column: str, cell: Callable[[int, str], str]) -> bytes:
    """A table of forty unrelated proteins, and what `cell` makes of number and sequence."""
    lines = [f"{sequence},{cell(n, sequence)}" for n, (_, sequence) in enumerate(proteins(40, 0))]
    return "\n".join([f"sequence,{column}", *lines, ""]).encode()


def good(number: int, sequence: str) -> str:
    """A residue's label is its kind."""
    return "".join("H" if one in "AELK" else "C" for one in sequence)


FILES = {
    "res.csv": rows("labels", good),
    "shifted.csv": rows("labels", lambda n, s: good(n, s)[:-1]),
    "blanks.csv": rows("labels", lambda n, s: good(n, s).replace("C", " ")),
    "separated.csv": rows("labels", lambda n, s: " ".join(good(n, s))),
    "bare.csv": rows("labels", lambda n, s: "-" * len(s)),
    "helix.csv": rows("labels", lambda n, s: "H" * len(s)),
    "res_test.csv": b"sequence,labels\nMKVWW,HHHZZ\n",
    "pairs.fasta": b">a\nMKV\nLLA\nHHHHHH\n",
    "num.csv": rows("target", lambda n, s: str(n)),
    "text.csv": rows("target", lambda n, s: "stable"),
    "nan.csv": rows("target", lambda n, s: "NaN"),
    "inf.csv": rows("target", lambda n, s: "-inf"),
    "constant.csv": rows("target", lambda n, s: "7.5"),
    "few_numbers.csv": b"sequence,target\nMKVA,1\nMKVC,2\n",
    "num_test.csv": b"sequence,target\nMKVWW,1\n",
    "empty.csv": b"",
    "header.csv": b"id,sequence,label\n",
    "columns.csv": b"name,text\n1,MKV\n",
    "unlabelled.csv": b"sequence,place\nMKV,X\n",
    "one.csv": b"id,sequence,label\n" + b"".join(b"%d,MKV%s,X\n" % (n, b"A" * n) for n in range(40)),
    "few.csv": b"id,sequence,label\na,MKVA,X\nb,MKVC,Y\n",
    "quote.csv": b'id,sequence,label\n1,"MKV,X\n',
    "latin.csv": b"id,sequence,label\n1,M\xe9KV,X\n",
    "utf16.csv": "id,sequence,label\na,MKV,X\n".encode("utf-16"),
    "sheet.csv": ZIP.getvalue(),
    "sheet.xlsx": ZIP.getvalue(),
    "half.parquet": b"PAR1",
    "dna.fasta": genes("Nucleus"),
    "no_label.fasta": b">a\nMKV\n>b\nMKL\n",
    "nothing.fasta": b"",
    "sequence.fasta": b"MKV\n",
    "1abc.pdb": b"HEADER    HYDROLASE\n",
    "gene.gb": b"LOCUS       NM_000546\n",
    "page.fasta": b"<html>404</html>",
    "cut.fasta.gz": gzip.compress(b">a X\nMKV\n" * 500)[:-20],
}

ROWS = [
    # what is to be done
    ("no output", "--model_name_or_path base --train_file data.csv",
     "--output_dir and --model_name_or_path are"),
    ("no base", "--output_dir OUT --train_file data.csv", "--output_dir and --model_name_or_path are needed"),
    ("nothing to do", MODEL, "nothing to do: give --train_file (labelled proteins) or --predict_file"),
    ("two sources", f"{TRAIN} --dataset_name x", "--train_file and --dataset_name: give one of them"),
    ("prediction of nothing", f"{MODEL} --do_predict",
     "--do_predict: give the proteins with --predict_file FASTA"),
    ("explanation of nothing", f"{TRAIN} --explain 3",
     "--explain: give the proteins with --predict_file FASTA"),
    ("a training flag to predict", f"{PREDICT} new.fasta --crop start",
     "--crop is for training, which needs"),
    ("merging an untuned model", f"{MODEL} --merge_adapter", "base: no tuned model (no localization.json)"),
    # the labelled proteins
    ("wrong path", f"{MODEL} --train_file gone.csv", "gone.csv: no such file; give a FASTA, CSV or Parquet"),
    ("a folder", f"{MODEL} --train_file base", "base: no such file; give a FASTA, CSV or Parquet file"),
    ("a name that says nothing", f"{MODEL} --train_file sheet.xlsx",
     "are read from .fasta, .csv or .parquet"),
    ("Excel named CSV", f"{MODEL} --train_file sheet.csv",
     "a zip archive or an Excel sheet; unzip it, or save the"),
    ("UTF-16", f"{MODEL} --train_file utf16.csv", "it is UTF-16 text; convert it: iconv"),
    ("Latin-1", f"{MODEL} --train_file latin.csv", "latin.csv: not UTF-8 text"),
    ("empty", f"{MODEL} --train_file empty.csv", "empty.csv: holds no row"),
    ("header only", f"{MODEL} --train_file header.csv", "header.csv: holds no row"),
    ("no sequences", f"{MODEL} --train_file columns.csv",
     "has no column sequence (it has: name, text); rename"),
    ("no labels", f"{MODEL} --train_file unlabelled.csv", "has no column label (it has: sequence, place)"),
    ("an open quote", f"{MODEL} --train_file quote.csv", "not CSV"),
    ("half a Parquet", f"{MODEL} --train_file half.parquet", "half.parquet: not a complete Parquet file"),
    ("no label in the headers", f"{MODEL} --train_file no_label.fasta",
     "no_label.fasta:1: no label; fix the rows"),
    ("DNA", f"{MODEL} --train_file dna.fasta", "the train proteins: DNA or RNA, not proteins: nearly all"),
    ("one label", f"{MODEL} --train_file one.csv", "give proteins of two labels or more"),
    ("two proteins", f"{MODEL} --train_file few.csv", "too few to split"),
    ("hub dataset misspelt", f"{MODEL} --dataset_name somebody/deeplok", "--dataset_name somebody/deeplok: "),
    # a label a residue
    ("labels of the test too short", f"{RESIDUE} res.csv --test_file shifted.csv",
     "not one test protein can be used; the first, "),
    ("labels too short", f"{RESIDUE} shifted.csv", " labels for "),
    ("a blank for a label", f"{RESIDUE} blanks.csv", " labels for "),
    ("blanks between labels", f"{RESIDUE} separated.csv", " labels for "),
    ("no residue labelled", f"{RESIDUE} bare.csv", "bare.csv:2: no residue has a label: all are -"),
    ("one class", f"{RESIDUE} helix.csv", "the training proteins have 1 label(s), which leaves nothing"),
    ("no class left", f"{RESIDUE} res.csv --unlabelled HC", "no residue has a label: all are HC"),
    ("a class of the test only", f"{RESIDUE} res.csv --test_file res_test.csv",
     "res_test.csv:2: no training protein has the label Z"),
    ("labels in another column", f"{RESIDUE} num.csv",
     "has no column labels (it has: sequence, target); rename"),
    ("a sequence over two lines", f"{RESIDUE} pairs.fasta", "pairs.fasta:1: not three lines a protein"),
    ("a letter that is none", f"{RESIDUE} res.csv --unlabelled ''", "give a letter that no label is"),
    ("pooling of residues", f"{RESIDUE} res.csv --pooling cls",
     "--pooling has no meaning with --task residue; leave it out"),
    ("cropping of residues", f"{RESIDUE} res.csv --crop start", "--crop has no meaning with --task residue"),
    ("explained residues", f"{RESIDUE} res.csv --predict_file new.fasta --explain 3",
     "--explain has no meaning with --task residue"),
    # a number a protein
    ("words", f"{NUMBER} text.csv", "text.csv:2: target 'stable' is not a number"),
    ("not a number", f"{NUMBER} nan.csv", "nan.csv:2: target NaN is not finite"),
    ("infinite", f"{NUMBER} inf.csv", "inf.csv:2: target -inf is not finite"),
    ("one number", f"{NUMBER} constant.csv",
     "training proteins are 7.5, which leaves nothing to learn; check the column"),
    ("two numbers", f"{NUMBER} few_numbers.csv", "too few to split"),
    ("a test of one number", f"{NUMBER} num.csv --test_file num_test.csv",
     "the test split has 1 protein(s) with 1 different target(s), too few for a correlation"),
    ("no numbers", f"{NUMBER} res.csv", "has no column target (it has: sequence, labels); rename"),
    ("weights of numbers", f"{NUMBER} num.csv --class_weights balanced",
     "--class_weights has no meaning with --task regression"),
    ("a score of labels", f"{NUMBER} num.csv --metric_for_best_model mcc",
     "--metric_for_best_model mcc: with --task regression one of spearman, pearson, rmse, loss"),
    # tasks
    ("no such task", f"{TRAIN} --task residues", "--task residues: not one of"),
    ("unlabelled places", f"{TRAIN} --unlabelled X", "--unlabelled has no meaning with --task localization"),
    ("another task's model", f"{RESIDUE} res.csv --model_name_or_path tuned",
     "tuned was tuned for --task localization; give a model of this task"),
    # the base
    ("no model", "--model_name_or_path data.csv --output_dir OUT --train_file data.csv", "no model there"),
    ("hub name misspelt", "--model_name_or_path esm2_t6_8M --output_dir OUT --train_file data.csv",
     "no model of that name; did you mean facebook/esm2_t6_8M_UR50D?"),
    ("hub name unknown", "--model_name_or_path somebody/bert --output_dir OUT --train_file data.csv",
     "--model_name_or_path somebody/bert: cannot be loaded"),
    ("a base of unknown size", "--model_name_or_path somebody/bert --estimate_memory",
     "of unknown size; give"),
    ("tuned otherwise", "--model_name_or_path tuned --output_dir OUT --train_file data.csv --tuning full",
     "--tuning full: "),
    ("pooled otherwise", "--model_name_or_path tuned --output_dir OUT --train_file data.csv --pooling cls",
     " is continued as it is (lora, pooling attention); start from "),
    ("another rank", "--model_name_or_path tuned --output_dir OUT --train_file data.csv --lora_rank 4",
     "--lora_rank 4: "),
    # prediction
    ("no proteins", f"{PREDICT} gone.fasta", "gone.fasta: no such file; give the proteins as FASTA"),
    ("an untuned model", f"{MODEL} --predict_file new.fasta", "base: no tuned model (no localization.json)"),
    ("DNA to predict", f"{PREDICT} dna.fasta", "dna.fasta: DNA or RNA, not proteins"),
    ("an empty FASTA", f"{PREDICT} nothing.fasta",
     "nothing.fasta: holds no FASTA record; is it the right file?"),
    ("no header", f"{PREDICT} sequence.fasta",
     "sequence.fasta:1: not FASTA: the first record must begin with"),
    ("PDB", f"{PREDICT} 1abc.pdb", "it is a PDB structure; fetch its sequences as FASTA"),
    ("GenBank", f"{PREDICT} gene.gb", "it is a GenBank file; fetch its proteins as FASTA"),
    ("HTML error page", f"{PREDICT} page.fasta",
     "it is a web page or XML; does a login page stand in between?"),
    ("incomplete gzip", f"{PREDICT} cut.fasta.gz", "the gzip stream is corrupt or incomplete"),
    ("a table", f"{PREDICT} data.csv", "data.csv:1: not FASTA"),
    # flags
    ("accumulation", f"{TRAIN} --gradient_accumulation_steps 2",
     "2 micro-batches of 8 proteins on 1 process(es) are --global_batch_size 16"),
    ("16 bits", f"{TRAIN} --fp16 true", "--fp16 true has no meaning here: use --precision bf16"),
    ("a flag of other scripts", f"{TRAIN} --do_train", "--do_train has no meaning here: use --train_file"),
    ("a batch larger than the data", f"{TRAIN} --global_batch_size 500",
     "larger than the 84 training proteins"),
    ("a rate below 0", f"{TRAIN} --learning_rate -1", "--learning_rate -1.0: must be above 0"),
    ("no residues", f"{TRAIN} --max_seq_length 3", "--max_seq_length 3: must be at least 4"),
    ("no rank", f"{TRAIN} --lora_rank 0", "--lora_rank must be at least 1"),
    ("misspelt flag", f"{TRAIN} --learning_rat 1",
     "unknown: --learning_rat 1 (did you mean --learning_rate?)"),
    ("a choice that is none", f"{TRAIN} --tuning qlorra", "--tuning qlorra: not one of"),
    ("a word for a number", f"{TRAIN} --lora_rank high", "--lora_rank high: not a number"),
    ("output is a file", "--model_name_or_path base --train_file data.csv --output_dir data.csv",
     "data.csv: File exists; choose another folder"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    write_labelled(folder / "data.csv")
    write_fasta(folder / "new.fasta", 2)
    (folder / "base").symlink_to(base)
    (folder / "tuned").mkdir()
    settings = settings_of(base, pooling="attention")
    save(untuned(settings), settings, folder / "tuned")
    return folder


@table(ROWS)
def test_misuse(words, message, folder):
    assert message in refusal(SCRIPT, words, folder)


def test_two_jobs_into_one_folder(folder, tmp_path):
    with only_writer(tmp_path / "OUT"):
        line = refusal(SCRIPT, f"{TRAIN} --output_dir {tmp_path / 'OUT'}", folder)
    assert "OUT: another process is writing there; wait for it to end" in line


def test_without_arguments_it_says_what_it_does():
    result = here(SCRIPT, check=False)
    assert result.returncode == 1 and "Fine-tune ESM-2 to say where in the cell" in result.stderr
    assert "python finetune_localization.py --model_name_or_path runs/ddp/final_model \\\n" in result.stderr


def test_the_memory_estimate_needs_no_weights_no_data_and_no_output():
    words = "--model_name_or_path facebook/esm2_t36_3B_UR50D --estimate_memory --max_seq_length 512"
    with own_process():
        printed = here(SCRIPT, *words.split()).stdout
    assert "8 x 512 tokens, bf16" in printed and "the layers in 4 bits" in printed
    fits = next(line for line in printed.splitlines() if line.startswith("fits on 24 GB"))
    assert fits.split()[-2:] == ["no", "yes"]
