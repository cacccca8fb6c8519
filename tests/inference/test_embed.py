"""embed.py: fair-esm's numbers, every format, windows, tuned models, interruptions."""

import gzip
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import ROOT, on_demand, run, run_ranks
from helpers.inference import PROTEINS, call, script
from helpers.kill_at_random import killed_runs
from helpers.localization_example import CPU, LORA, save, settings_of, write_fasta
from pyarrow import parquet
from safetensors.numpy import load_file
from safetensors.torch import save_file
from transformers import EsmForMaskedLM

from esm2_hyperpod.alphabet import encode
from esm2_hyperpod.localization.model import build
from esm2_hyperpod.streaming.windows import windows

READ = {name: text.upper().rstrip("*") for name, text in PROTEINS.items() if text}


def embeddings(folder) -> dict[str, dict]:
    """id -> column -> value."""
    rows = parquet.read_table(folder / "embeddings.parquet").to_pylist()
    return {row["id"]: row for row in rows}


@pytest.fixture(scope="module")
def everything(model_folder, fasta, tmp_path_factory):
    """All kinds of embedding of three layers, as a user gets them by the real command."""
    folder = tmp_path_factory.mktemp("embeddings")
    words = ["--model_name_or_path", model_folder, "--fasta", fasta, "--output_dir", folder / "out"]
    words += "--include mean cls residues --layers 0 2 -1".split()
    assert "6 proteins; mean_0" in run("embed.py", *words).stdout
    return folder / "out"


@torch.no_grad()
def test_embeddings_equal_fair_esms(everything, meta):
    """By the rules of its scripts/extract.py: `<cls>` and `<eos>` are left out of the mean."""
    model, convert = meta
    found = embeddings(everything)
    assert list(found) == list(PROTEINS)
    assert (
        found["empty"]["residues"] == 0 and found["empty"]["mean_4"] is found["empty"]["residues_4"] is None
    )
    for name, text in READ.items():
        _, _, tokens = convert([(name, text.replace("J", "<unk>"))])
        for layer, states in model(tokens, repr_layers=[0, 2, 4])["representations"].items():
            states = states[0].numpy()
            row = found[name]
            assert row["residues"] == len(text)
            assert row[f"mean_{layer}"] == pytest.approx(states[1:-1].mean(axis=0), abs=1e-4)
            assert row[f"cls_{layer}"] == pytest.approx(states[0], abs=1e-4)
            assert np.array(row[f"residues_{layer}"]) == pytest.approx(states[1:-1], abs=1e-4)


def test_pandas_reads_it_and_the_json_says_what_it_is(everything, model_folder):
    table = pd.read_parquet(everything / "embeddings.parquet")
    assert table.mean_4[0].dtype == np.float32 and np.stack(table.residues_4[0]).shape == (33, 128)
    facts = json.loads((everything / "embeddings.json").read_text())
    assert facts["layers"] == [0, 2, -1] and "model.safetensors" in facts["model"]


def test_the_five_lines_of_the_readme_give_the_same(model_folder, tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert len([line for line in code.splitlines() if line]) == 5
    found = {}
    exec(code.replace('"final_model"', repr(str(model_folder))), found)
    (tmp_path / "a.fasta").write_text(f">a\n{re.search('[A-Z]{8,}', code)[0]}\n")
    words = ["--model_name_or_path", model_folder, "--fasta", tmp_path / "a.fasta"]
    call("embed.py", *words, "--output_dir", tmp_path)
    ours = embeddings(tmp_path)["a"]["mean_4"]
    assert ours == pytest.approx(found["embedding"].detach().numpy(), abs=1e-5)


def test_run_again_it_has_nothing_to_do_and_other_flags_are_refused(everything, model_folder, fasta):
    before = (everything / "embeddings.parquet").stat().st_mtime_ns
    words = ["--model_name_or_path", model_folder, "--fasta", fasta, "--output_dir", everything]
    again = run("embed.py", *words, *"--include mean cls residues --layers 0 2 -1".split())
    assert "finished already" in again.stdout
    other = run("embed.py", *words, check=False)
    assert other.returncode == 1 and len(other.stderr.strip().splitlines()) == 1
    assert "was made with include=['mean', 'cls', 'residues'], this run asks for ['mean']" in other.stderr
    assert (everything / "embeddings.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_arrays_hold_what_parquet_holds(everything, model_folder, fasta, tmp_path, form):
    compressed = tmp_path / "proteins.fasta.gz"
    compressed.write_bytes(gzip.compress(fasta.read_bytes()))
    words = ["--model_name_or_path", model_folder, "--fasta", compressed, "--output_dir", tmp_path / "out"]
    include = ["residues"] if form == "npy" else ["mean", "residues"]
    call("embed.py", *words, "--include", *include, "--format", form, "--dtype", "float16")
    path = tmp_path / "out" / f"embeddings.{form}"
    arrays = load_file(path) if form == "safetensors" else {"residues_4": np.load(path, mmap_mode="r")}
    found, proteins = embeddings(everything), pd.read_csv(tmp_path / "out" / "proteins.csv")
    assert list(proteins.id) == list(PROTEINS) and arrays["residues_4"].dtype == np.float16
    for number, row in enumerate(proteins.itertuples()):
        rows = arrays["residues_4"][row.first_residue_row : row.first_residue_row + row.residues]
        if row.residues:
            assert rows == pytest.approx(np.array(found[row.id]["residues_4"]), abs=0.02)
            if form == "safetensors":
                assert arrays["mean_4"][number] == pytest.approx(np.array(found[row.id]["mean_4"]), abs=0.02)
    if form == "safetensors":
        assert np.isnan(arrays["mean_4"][list(PROTEINS).index("empty")]).all()


@torch.no_grad()
def test_a_long_protein_is_read_in_windows_as_the_rule_says(model_folder, fasta, meta, tmp_path):
    words = ["--model_name_or_path", model_folder, "--fasta", fasta, "--output_dir", tmp_path]
    call("embed.py", *words, *"--include mean cls residues --max_length 42".split())
    model, convert = meta
    text, own, starts = READ["long"], [], []
    for window in windows(len(text), 42):
        _, _, tokens = convert([("long", text[window.start : window.stop])])
        states = model(tokens, repr_layers=[4])["representations"][4][0].numpy()
        own.append(states[1:-1][window.first - window.start : window.last - window.start])
        starts.append(states[0])
    expected = np.concatenate(own)
    assert len(starts) == 5
    row = embeddings(tmp_path)["long"]
    assert np.array(row["residues_4"]) == pytest.approx(expected, abs=1e-4)
    assert row["mean_4"] == pytest.approx(expected.mean(axis=0), abs=1e-4)
    assert row["cls_4"] == pytest.approx(np.mean(starts, axis=0), abs=1e-4)


def test_a_folder_laid_out_like_the_hubs_works(everything, model_folder, fasta, tmp_path):
    """A position table that nothing reads, and rotary frequencies in each layer (facebook/esm2_*)."""
    shutil.copytree(model_folder, tmp_path / "esm2_t4_tiny")
    weights = EsmForMaskedLM.from_pretrained(model_folder).state_dict()
    frequencies = weights.pop("esm.rotary_embeddings.inv_freq")
    weights.pop("lm_head.decoder.weight")
    weights["esm.embeddings.position_embeddings.weight"] = torch.zeros(1026, 128)
    for layer in range(4):
        name = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
        weights[name] = frequencies.clone()
    save_file(weights, tmp_path / "esm2_t4_tiny" / "model.safetensors", metadata={"format": "pt"})
    words = ["--model_name_or_path", tmp_path / "esm2_t4_tiny", "--fasta", fasta]
    call("embed.py", *words, "--output_dir", tmp_path / "out")
    assert embeddings(tmp_path / "out")["one"]["mean_4"] == embeddings(everything)["one"]["mean_4"]


@torch.no_grad()
@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_an_adapter_is_embedded_as_it_computes(base, fasta, tmp_path, tuning):
    settings = settings_of(base, tuning=tuning, pooling="attention")
    torch.manual_seed(1)
    model = build(settings, LORA, CPU, bf16=False).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.3)
    save(model, settings, tmp_path / "adapter")
    words = ["--model_name_or_path", tmp_path / "adapter", "--fasta", fasta, "--output_dir", tmp_path / "out"]
    call("embed.py", *words, "--layers", "1", "2")
    ids = torch.tensor(encode(READ["one"].encode()).astype(np.int64))
    states = model(ids[None], output_hidden_states=True).hidden_states
    norm = model.get_base_model().esm.encoder.emb_layer_norm_after
    row = embeddings(tmp_path / "out")["one"]
    for layer, expected in ((1, states[1]), (2, norm(states[2]))):
        assert row[f"mean_{layer}"] == pytest.approx(expected[0, 1:-1].mean(dim=0).numpy(), abs=1e-4)


def test_interrupted_it_is_resumed_to_the_same_bytes(base, tmp_path, monkeypatch):
    write_fasta(tmp_path / "a.fasta", 30)
    module, words = script("embed.py"), ["--model_name_or_path", base, "--fasta", tmp_path / "a.fasta"]
    words += ["--include", "mean", "residues"]
    monkeypatch.setattr(module, "CHUNK", 8)
    call("embed.py", *words, "--output_dir", tmp_path / "whole")
    computed, plain = [], module.embed

    def interrupted(model, proteins, *more):
        computed.append(len(proteins))
        if len(computed) == 3:
            raise KeyboardInterrupt
        return plain(model, proteins, *more)

    monkeypatch.setattr(module, "embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call("embed.py", *words, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out" / "embeddings.parquet").exists()
    call("embed.py", *words, "--output_dir", tmp_path / "out")
    assert computed == [8, 8, 8, 8, 6]
    for name in ("embeddings.parquet", "embeddings.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock",
        "embeddings.json",
        "embeddings.parquet",
    ]


def test_half_precision_is_close(model_folder, fasta, everything, tmp_path):
    words = ["--model_name_or_path", model_folder, "--fasta", fasta, "--output_dir", tmp_path]
    call("embed.py", *words, "--precision", "bf16")
    for name in READ:
        ours, exact = embeddings(tmp_path)[name]["mean_4"], embeddings(everything)[name]["mean_4"]
        assert np.corrcoef(ours, exact)[0, 1] > 0.99


@on_demand
def test_killed_at_any_instant_it_ends_with_the_same_bytes(base, tmp_path):
    write_fasta(tmp_path / "a.fasta", 3000)
    words = ["--model_name_or_path", base, "--fasta", tmp_path / "a.fasta", "--output_dir", "{}"]
    first, *others = killed_runs(10, 1, tmp_path / "out", "embed.py", *words)
    assert {tuple(other["digests"].items()) for other in others} == {tuple(first["digests"].items())}
    assert sum(other["killed"] for other in others) > 5


@on_demand
def test_two_processes_write_the_bytes_of_one(base, tmp_path):
    write_fasta(tmp_path / "a.fasta", 1500)
    words = ["--model_name_or_path", base, "--fasta", tmp_path / "a.fasta", "--max_length", 60]
    words += ["--include", "mean", "cls", "residues", "--output_dir"]
    run("embed.py", *words, tmp_path / "one")
    run_ranks("embed.py", *words, tmp_path / "two")
    one, two = ((tmp_path / name / "embeddings.parquet").read_bytes() for name in ("one", "two"))
    assert one == two
