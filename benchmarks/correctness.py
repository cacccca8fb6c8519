"""Is what this machine computes right? Each check with its figure and the limit it must keep.

    python benchmarks/correctness.py [--json benchmarks/out/correctness.json]

On a GPU in bf16, on a CPU in fp32. Checked are: a pack against Hugging Face's model, one protein at a time,
for each of ESM-2's head sizes, forward and backward, eager and compiled; 4-bit products against those of the
dequantised weights; an interrupted run against an undisturbed one; DDP against FSDP2; and, of the steps of a
compiled run after the first five, recompilations, graph breaks and what makes the host wait for the GPU. Exit
code 1 if a limit is not kept.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import EsmConfig, EsmForMaskedLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.results import record  # noqa: E402
from esm2_hyperpod.alphabet import AMINO_ACID_IDS, MASK, encode  # noqa: E402
from esm2_hyperpod.esm.model import build_config  # noqa: E402
from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM, masked_lm_loss  # noqa: E402
from esm2_hyperpod.training.throughput import device_name  # noqa: E402

HEAD_SIZES = {16: "8M", 24: "35M", 32: "150M", 64: "650M, 3B", 128: "15B"}
LENGTHS = (3, 17, 64, 129, 500)
TRAIN = (
    "--model_size tiny --max_steps 8 --tokens_per_device 512 --global_batch_tokens 2048 --max_seq_length 256 "
    "--logging_steps 1 --save_steps 4 --eval_strategy no --report_to none"
).split()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, figure, limit in checks(device, Path(folder)):
            rows[name] = {"figure": figure, "limit": limit, "kept": "yes" if figure <= limit else "NO"}
            print(f"{name}: {figure:.3g}, at most {limit:.3g}: {rows[name]['kept']}", flush=True)
            if args.json:
                record(args.json, {"task": "correctness", "device": device_name(device)}, rows)
    if any(row["kept"] == "NO" for row in rows.values()):
        sys.exit("correctness.py: error: a limit is not kept")


def checks(device: torch.device, folder: Path) -> Iterator[tuple[str, float, float]]:
    """(what, figure, limit) of each check."""
    for head_size, models in HEAD_SIZES.items():
        yield from packs(head_size, f"head size {head_size} ({models})", device)
    yield four_bits(device)
    yield from runs(device, folder)


def packs(head_size: int, name: str, device: torch.device) -> Iterator[tuple[str, float, float]]:
    """A pack's loss and gradients against fp32, in units of what Hugging Face's own bf16 misses it by."""
    torch.manual_seed(head_size)
    config = build_config("tiny")
    config.num_hidden_layers, config.num_attention_heads = 2, 4
    config.hidden_size, config.intermediate_size = 4 * head_size, 16 * head_size
    plain = EsmForMaskedLM(config)
    for parameter in plain.parameters():  # biases start at zero, where they would hide mistakes
        parameter.data.normal_(std=0.1)
    plain.to(device)
    rows, labels = masked_rows()
    exact = alone(plain, rows, labels, device, half=False)
    half = device.type == "cuda"
    # In fp32 rounding alone; in bf16 not worse than twice what transformers' bf16 is off, which is no bug.
    limit = 2 * distance(alone(plain, rows, labels, device, half=True), exact) if half else 1e-5
    for way in ("eager", "compiled"):
        ours = packed(plain, config, rows, labels, device, half, compiled=way == "compiled")
        yield f"pack, {name}, {way}: relative distance of loss and gradients", distance(ours, exact), limit


def masked_rows() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Random proteins with a fifth of their residues masked, and the labels."""
    rng = np.random.default_rng(0)
    rows, labels = [], []
    for length in LENGTHS:
        ids = encode(b"A" * length)
        ids[1:-1] = rng.choice(np.asarray(AMINO_ACID_IDS, dtype=np.uint8), length)
        ids = torch.from_numpy(ids.astype(np.int64))
        chosen = torch.from_numpy(rng.random(len(ids)) < 0.2)
        chosen[0] = chosen[-1] = False
        rows.append(torch.where(chosen, MASK, ids))
        labels.append(torch.where(chosen, ids, -100))
    return rows, labels


def alone(model, rows, labels, device: torch.device, half: bool) -> torch.Tensor:
    """Loss and gradients of one protein at a time, as one vector."""
    model.zero_grad()
    total = torch.zeros((), device=device)
    for row, label in zip(rows, labels):
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(row[None].to(device)).logits
        loss = masked_lm_loss(logits, label.to(device), 100)
        loss.backward()
        total += loss.detach()
    return as_vector(model, total)


def packed(plain, config: EsmConfig, rows, labels, device: torch.device, half: bool, compiled: bool):
    """The same of one pack."""
    model = PackedEsmForMaskedLM(config)
    model.load_state_dict(plain.state_dict())
    model.to(device)
    model.compute_dtype = torch.bfloat16 if half else torch.float32
    if compiled:
        model.compile_layers()
    borders = np.cumsum([0, *map(len, rows)])
    label = torch.cat(labels)
    (predict,) = torch.nonzero(label != -100, as_tuple=True)
    logits = model(
        input_ids=torch.cat(rows)[None].to(device),
        position_ids=torch.cat([torch.arange(len(row)) for row in rows])[None].to(device),
        cu_seqlens=torch.tensor([*borders, borders[-1]], dtype=torch.int32, device=device),
        max_seqlen=max(map(len, rows)),
        predict=predict.to(device),
    ).logits
    loss = masked_lm_loss(logits, label[predict].to(device), 100)
    loss.backward()
    return as_vector(model, loss.detach())


def as_vector(model, loss: torch.Tensor) -> torch.Tensor:
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([loss.reshape(1), *gradients]).double()


def distance(some: torch.Tensor, others: torch.Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((some - others).norm() / others.norm())


def four_bits(device: torch.device) -> tuple[str, float, float]:
    """bitsandbytes' 4-bit product against the product of the weights it dequantises."""
    import bitsandbytes as bnb  # slow to import

    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layer = bnb.nn.Linear4bit(256, 512, bias=False, compute_dtype=dtype, quant_type="nf4").to(device)
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype)
    inputs = torch.randn(64, 256, device=device, dtype=dtype)
    got, expected = layer(inputs).double().flatten(), (inputs @ weight.T).double().flatten()
    return "4-bit product: relative distance", distance(got, expected), 1e-2


def runs(device: torch.device, folder: Path) -> Iterator[tuple[str, float, float]]:
    """Whole training runs, through the wrappers."""
    python("0.download_data.py", *"--source synthetic --max_records 500 --num_partitions 2".split(),
           "--output_dir", folder / "csv")  # fmt: skip
    python("1.tokenize_uniref_csv.py", "--input_dir", folder / "csv", "--output_dir", folder / "arrow")
    on_gpu = device.type == "cuda"
    losses = train(folder, "2.train_ddp.sh", "ddp")
    train(folder, "2.train_ddp.sh", "resumed", "--stop_after_steps", "4")
    resumed = train(folder, "2.train_ddp.sh", "resumed")
    # The kernel's backward pass adds up in any order on a GPU; on a CPU every digit comes back.
    yield "interrupted run: largest difference of a loss", largest(losses, resumed), 5e-3 if on_gpu else 0.0
    half = train(folder, "2.train_ddp.sh", "ddp-bf16", "--precision", "bf16")
    sharded = train(folder, "3.train_fsdp.sh", "fsdp-bf16", "--precision", "bf16")
    yield "DDP and FSDP2 in bf16: largest difference of a loss", largest(half, sharded), 5e-3
    yield "DDP and FSDP2 in bf16: difference of the first loss", abs(half[0] - sharded[0]), 1e-5
    yield from compiled_run(folder, on_gpu)


def compiled_run(folder: Path, on_gpu: bool) -> Iterator[tuple[str, float, float]]:
    """What a compiled run does after its first five steps that it should not do."""
    script = folder / "watched.py"
    script.write_text(WATCHED)
    words = ["--dataset_dir", folder / "arrow", "--output_dir", folder / "compiled", *TRAIN]
    words += ["--max_steps", "12", "--logging_steps", "100", "--torch_compile", "true"]
    logged = python(script, *words, TORCH_LOGS="recompiles,graph_breaks", PYTHONPATH=str(ROOT))
    late = logged.partition("WATCHED FROM HERE")[2].partition("WATCHED TO HERE")[0]
    yield "recompilations after five steps", float(late.count("Recompiling function")), 0.0
    broken = set(re.findall(r"Skip calling function `<function (\w+)", logged)) - {"_one_by_one"}
    yield "graph breaks, but for the CPU's attention", float(len(broken)), 0.0
    if on_gpu:
        waits = re.findall(r"WAITED (.*)", late)
        for place in sorted(set(waits)):
            print(f"  the host waits for the GPU at {place}")
        yield "times the host waits for the GPU in six steps", float(len(waits)), 0.0


WATCHED = """
import runpy, sys, warnings, torch
from esm2_hyperpod.imports import leave_out
leave_out("peft", "datasets", "scipy", "sklearn")
from esm2_hyperpod.pretraining.trainer import PretrainingTrainer

plain = PretrainingTrainer.get_batch_samples

def watched(self, *rest):
    step = self.state.global_step
    if step in (5, 11):
        print("WATCHED FROM HERE" if step == 5 else "WATCHED TO HERE", file=sys.stderr, flush=True)
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("warn" if 5 <= step < 11 else "default")
    return plain(self, *rest)

def show(message, category, filename, line, *_):
    text = str(message)
    kind = "WAITED" if "synchroniz" in text else "WARNED"
    print(kind, f"{filename}:{line}", file=sys.stderr, flush=True)

warnings.simplefilter("always")
warnings.showwarning = show
PretrainingTrainer.get_batch_samples = watched
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""


def train(folder: Path, wrapper: str, name: str, *flags: str) -> list[float]:
    """The losses of a run through its wrapper, on all GPUs of this machine or two CPU processes."""
    places = {"DATASET_DIR": str(folder / "arrow"), "OUTPUT_DIR": str(folder / name)}
    places["GPUS_PER_NODE"] = str(torch.cuda.device_count() or 2)
    python_folder = str(Path(sys.executable).parent)
    environment = {"PATH": f"{python_folder}:{os.environ['PATH']}", "VENV": sys.prefix}
    call(["bash", wrapper, *TRAIN, *flags], stopped=75, **places, **environment)
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def largest(some: list[float], others: list[float]) -> float:
    assert len(some) == len(others), (some, others)
    return max(abs(one - other) for one, other in zip(some, others))


def python(*words: object, **environment: str) -> str:
    return call([sys.executable, *map(str, words)], **environment)


def call(words: list[str], stopped: int = 0, **environment: str) -> str:
    """What a command wrote to stderr. Exits with its output if it fails."""
    result = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if result.returncode not in (0, stopped):
        sys.exit(f"correctness.py: error: {' '.join(words)} failed:\n{result.stdout}\n{result.stderr}")
    return result.stderr


if __name__ == "__main__":
    main()
