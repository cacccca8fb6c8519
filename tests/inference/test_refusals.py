"""What a user may get wrong about using a model: one line each, and nothing written."""

import gzip
import json

import pytest
from helpers.inference import call

from esm2_hyperpod.errors import UserError

EMBED = "embed.py --model_name_or_path BASE --output_dir OUT"
SCORE = "score_variants.py --model_name_or_path BASE --output_dir OUT"
FILL = "fill_masks.py --model_name_or_path BASE --output_dir OUT"
ONE = f"{SCORE} --sequence MKVA --mutants"

FILES = {
    "good.fasta": ">a\nMKVA\n",
    "two.fasta": ">a\nMKVA\n>b\nMKV\n",
    "twice.fasta": ">a\nMKVA\n>a\nMKV\n",
    "empty.fasta": "",
    "not.fasta": "MKVA\n",
    "digits.fasta": ">a\nMKVA\n>b\nMK7A\n",
    "hollow.fasta": ">a\nMKVA\n>b\n",
    "dna.fasta": ">a\n" + "ATGAAAGTTGCTNN" * 5 + "\n",
    "good.csv": "mutant\nM1A\n",
    "ids.csv": "id,mutant\na,M1A\nc,M1A\n",
    "other.csv": "variant,score\nM1A,3\n",
    "header.csv": "mutant\n",
    "empty.csv": "",
    "format.csv": "mutant\nM1A\nM1\n",
    "blank.csv": "mutant,y\n,3\n",
    "wild.csv": "mutant\nM1A\nA2G\n",
    "far.csv": "mutant\nM5A\n",
    "zero.csv": "mutant\nM0A\n",
    "same.csv": "mutant\nM1A:M1C\n",
    "letter.csv": "mutant\nM1J\n",
    "ragged.csv": "mutant,y\nM1A\n",
    "quoted.csv": 'mutant\n"M1A" x\n',
    "taken.csv": "mutant,masked_marginals\nM1A,1\n",
}
REFUSALS = {
    "no model": ("embed.py --output_dir OUT --fasta good.fasta", "--model_name_or_path"),
    "no output": ("embed.py --model_name_or_path BASE --fasta good.fasta", "--output_dir"),
    "no proteins": (EMBED, "--fasta"),
    "unknown flag": (f"{EMBED} --fasta good.fasta --layer 1", "unknown: --layer 1 .did you mean --layers"),
    "no such file": (f"{EMBED} --fasta gone.fasta", "gone.fasta: no such file"),
    "a folder for a file": (f"{EMBED} --fasta BASE", "no such file"),
    "empty file": (f"{EMBED} --fasta empty.fasta", "holds no FASTA record"),
    "no FASTA": (f"{EMBED} --fasta not.fasta", "not.fasta:1: not FASTA"),
    "binary": (f"{EMBED} --fasta binary.fasta", "not UTF-8 text"),
    "broken gzip": (f"{EMBED} --fasta broken.fasta.gz", "gzip stream is corrupt or incomplete"),
    "DNA": (f"{EMBED} --fasta dna.fasta", "dna.fasta: DNA or RNA, not .* with --allow_nucleotides"),
    "DNA to score": (f"{SCORE} --fasta dna.fasta --scan", "--fasta .*dna.fasta: DNA or RNA, not proteins"),
    "RNA": (f"{FILL} --sequence {'augc' * 15} --perplexity", "--sequence: DNA or RNA, not proteins"),
    "output is a file": (f"{EMBED.replace('OUT', 'good.csv')} --fasta good.fasta", "a file; give a folder"),
    "no model there": (f"{EMBED.replace('BASE', 'good.csv')} --fasta good.fasta", "no model there"),
    "another model": (
        f"{EMBED.replace('BASE', 'bert')} --fasta good.fasta",
        "no ESM-2 model .model type bert",
    ),
    "ESM-1": (f"{EMBED.replace('BASE', 'esm1')} --fasta good.fasta", "ESM-1, not ESM-2"),
    "no weights": (f"{EMBED.replace('BASE', 'hollow')} --fasta good.fasta", "cannot be loaded"),
    "half the weights": (f"{EMBED.replace('BASE', 'half')} --fasta good.fasta", "cannot be loaded"),
    "adapter without settings": (f"{EMBED.replace('BASE', 'adapter')} --fasta good.fasta", "no tuned model"),
    "layer": (f"{EMBED} --fasta good.fasta --layers 3", "--layers 3: the model has layers 0 to 2"),
    "layer from the end": (f"{EMBED} --fasta good.fasta --layers -4", "--layers -4: the model has"),
    "no number": (f"{EMBED} --fasta good.fasta --layers last", "--layers last: not a number"),
    "kind": (f"{EMBED} --fasta good.fasta --include max", "--include max: not one of"),
    "format": (f"{EMBED} --fasta good.fasta --format csv", "--format csv: not one of"),
    "type": (f"{EMBED} --fasta good.fasta --dtype int8", "--dtype int8: not one of"),
    "two arrays in one": (f"{EMBED} --fasta good.fasta --format npy --layers 1 2", "holds one array"),
    "window": (f"{EMBED} --fasta good.fasta --max_length 3", "must be 4 or more"),
    "no variants": (f"{SCORE} --sequence MKVA", "one of the arguments --mutants --scan is required"),
    "two kinds of variants": (f"{ONE} good.csv --scan", "not allowed with"),
    "two kinds of proteins": (f"{SCORE} --sequence M --fasta good.fasta --scan", "not allowed with"),
    "scoring": (f"{SCORE} --sequence MKVA --scan --scoring best", "--scoring best: not one of"),
    "no such table": (f"{ONE} gone.csv", "gone.csv: no such file"),
    "empty table": (f"{ONE} empty.csv", "has no column mutant .it has: nothing"),
    "header only": (f"{ONE} header.csv", "holds no variants"),
    "other columns": (f"{ONE} other.csv", "has no column mutant .it has: variant, score"),
    "no variant": (f"{ONE} format.csv", "format.csv:3: 'M1' is no variant"),
    "blank cell": (f"{ONE} blank.csv", "blank.csv:2: '' is no variant"),
    "wild type": (f"{ONE} wild.csv", "wild.csv:3: A2G: sequence has K at 2, not A"),
    "beyond the end": (f"{ONE} far.csv", "far.csv:2: M5A: sequence has positions 1 to 4"),
    "before the start": (f"{ONE} zero.csv", "zero.csv:2: M0A: sequence has positions 1 to 4"),
    "numbering": (f"{ONE} good.csv --first_residue 2", "good.csv:2: M1A: sequence has positions 2 to 5"),
    "position twice": (f"{ONE} same.csv", "same.csv:2: M1A:M1C: two substitutions of position 1"),
    "unknown residue": (f"{ONE} letter.csv", "letter.csv:2: M1J: J is no residue"),
    "ragged": (f"{ONE} ragged.csv", "ragged.csv:2: 1 cells, the header has 2"),
    "quotes": (f"{ONE} quoted.csv", "quoted.csv:2: not CSV"),
    "scores already": (f"{ONE} taken.csv", "has a column masked_marginals already"),
    "whose variant": (f"{SCORE} --fasta two.fasta --mutants good.csv", "no column id"),
    "unknown protein": (f"{SCORE} --fasta two.fasta --mutants ids.csv", "ids.csv:3: no protein c in --fasta"),
    "id twice": (f"{SCORE} --fasta twice.fasta --mutants ids.csv", "twice.fasta:3: a is there twice"),
    "no protein": (f"{SCORE} --sequence MK4 --scan", "sequence holds '4', which is no residue"),
    "no residues": (f"{SCORE} --fasta hollow.fasta --scan", "hollow.fasta:3: b has no residues"),
    "a classifier": (f"{SCORE.replace('BASE', 'adapter')} --sequence MKVA --scan", "fine-tuned to classify"),
    "no mask": (f"{FILL} --sequence MKVA", "holds no <mask>"),
    "position": (f"{FILL} --fasta two.fasta --positions 4", "--positions 4: b has 3 residues"),
    "position 0": (f"{FILL} --sequence MKVA --positions 0", "must be 1 or more"),
    "too many": (f"{FILL} --sequence MK<mask> --top_k 21", "--top_k 21: there are 20 amino acids"),
    "both": (f"{FILL} --sequence MKVA --positions 1 --perplexity", "not allowed with"),
    "mask to score": (f"{FILL} --sequence MK<mask> --perplexity", "holds '<', which is no residue"),
    "a digit": (f"{FILL} --fasta digits.fasta --perplexity", "digits.fasta:3: b holds '7'"),
    "head": (f"{FILL.replace('BASE', 'headless')} --sequence MK<mask>", "of its weights are missing"),
}


@pytest.fixture(scope="module")
def places(base, tmp_path_factory):
    """The files above, and folders that hold no whole ESM-2."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("mistakes")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "binary.fasta").write_bytes(b">a\nMK\xff\xfe\n")
    (folder / "broken.fasta.gz").write_bytes(gzip.compress(b">a\nMKVA\n" * 99)[:-9])
    config = json.loads((base / "config.json").read_text())
    weights = load_file(base / "model.safetensors")
    changes = {
        "bert": {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        "esm1": {"position_embedding_type": "absolute"},
        "hollow": {},
        "half": {},
        "adapter": {},
        "headless": {},
    }
    for name, change in changes.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({**config, **change}))
    half = (base / "model.safetensors").read_bytes()
    (folder / "half" / "model.safetensors").write_bytes(half[: len(half) // 2])
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("lm_head")}
    save_file(kept, folder / "headless" / "model.safetensors", metadata={"format": "pt"})
    return {"BASE": base, **{path.name: path for path in folder.iterdir()}}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case, places, tmp_path):
    line, expected = REFUSALS[case]
    script, *words = line.split()
    missing = {word: tmp_path / word for word in words if word.startswith("gone")}
    files = {**places, **missing, "OUT": tmp_path / "out"}
    with pytest.raises(UserError, match=expected) as refusal:
        call(script, *(files.get(word, word) for word in words))
    assert "\n" not in str(refusal.value)
    left = [path.name for path in (tmp_path / "out").glob("*") if "partial" not in path.name]
    assert set(left) <= {".lock"}


def test_a_folder_that_another_process_writes_to_is_refused(base, places, tmp_path):
    from esm2_hyperpod.artifacts import only_writer

    words = ["--model_name_or_path", base, "--fasta", places["good.fasta"], "--output_dir", tmp_path]
    with only_writer(tmp_path), pytest.raises(UserError, match="another process is writing there"):
        call("embed.py", *words)


def test_nucleotides_are_taken_where_they_are_wanted(places, tmp_path):
    words = ["--model_name_or_path", places["BASE"], "--fasta", places["dna.fasta"], "--output_dir", tmp_path]
    assert call("embed.py", *words, "--allow_nucleotides") is None
    assert (tmp_path / "embeddings.parquet").is_file()


def test_values_beyond_half_precision_are_refused(base, places, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    weights["esm.encoder.layer.0.output.dense.bias"].fill_(1e6)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((base / "config.json").read_text())
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    words = ["--model_name_or_path", tmp_path / "model", "--fasta", places["good.fasta"], "--layers", "1"]
    with pytest.raises(UserError, match=r"mean_1: values beyond float16's 65,504; use --dtype float32"):
        call("embed.py", *words, "--dtype", "float16", "--output_dir", tmp_path / "out")
