"""A race: which way of training reaches a validation loss with fewer tokens, and in less time.

    python benchmarks/time_to_loss.py --fasta sample.fasta.gz --folder /tmp/race [--seeds 0 1 2]

Data, model, batch, number of steps and validation set are the same for all; the seed decides weights, order,
crops and masks. The bar is the loss that the best AdamW ends with. The losses of the test split are of the
models at the end. Started again, it goes on where it was. Prints Markdown; writes race.png into the folder.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from esm2_hyperpod.esm.model import FINAL_MODEL  # noqa: E402
from esm2_hyperpod.figures import new_figure, save_figure  # noqa: E402
from esm2_hyperpod.inference.model import load_masked_lm  # noqa: E402
from esm2_hyperpod.pretraining.held_out import held_out_figures, open_held_out  # noqa: E402
from esm2_hyperpod.runs.record import read_metrics  # noqa: E402

VARIANTS = {
    "AdamW 1.25e-4": "--learning_rate 1.25e-4",
    "AdamW 2.5e-4": "--learning_rate 2.5e-4",
    "AdamW 2.5e-4 WSD": "--learning_rate 2.5e-4 --lr_schedule wsd",
    "AdamW 5e-4": "--learning_rate 5e-4",
    "AdamW 5e-4 beta2 0.95": "--learning_rate 5e-4 --adam_beta2 0.95",
    "AdamW 5e-4 long warm-up": "--learning_rate 5e-4 --warmup_steps {third}",
    "AdamW 1e-3": "--learning_rate 1e-3",
    "AdamW 1e-3 long warm-up": "--learning_rate 1e-3 --warmup_steps {third}",
    "AdamW 2e-3": "--learning_rate 2e-3",
    "Muon 2.5e-4": "--optim muon --learning_rate 2.5e-4",
    "Muon 5e-4": "--optim muon --learning_rate 5e-4",
    "Muon 5e-4 WSD": "--optim muon --learning_rate 5e-4 --lr_schedule wsd",
    "Muon 1e-3": "--optim muon --learning_rate 1e-3",
    "Muon 2e-3": "--optim muon --learning_rate 2e-3",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fasta", required=True, help="what is trained and validated on")
    parser.add_argument("--folder", type=Path, required=True, help="where data and runs are kept")
    parser.add_argument("--model_size", default="8M")
    parser.add_argument("--tokens", type=int, default=4096, help="of a step")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    csv, arrow = args.folder / "csv", args.folder / "arrow"
    run("0.download_data.py", "--source", args.fasta, "--num_partitions", 4, "--output_dir", csv)
    run("1.tokenize_uniref_csv.py", "--input_dir", csv, "--output_dir", arrow, "--validation_size", 0.02)
    curves: dict[str, list[dict[int, float]]] = {name: [] for name in args.variants}
    tests: dict[str, list[float]] = {name: [] for name in args.variants}
    speeds: dict[str, list[float]] = {name: [] for name in args.variants}
    for seed in args.seeds:
        for name in args.variants:
            output = args.folder / f"{args.model_size}-{args.tokens}" / f"{name.replace(' ', '-')}-{seed}"
            run("train.py", "--dataset_dir", arrow, "--output_dir", output, *flags(args, name, seed))
            lines = read_metrics(output)
            curves[name].append({line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line})
            tests[name].append(loss_of_test_split(output, arrow / "test"))
            # Of the fastest window: the machine may have had other work in the others.
            speeds[name].append(max(line["tokens_per_second"] for line in lines if "loss" in line))
            report(args, curves, tests, speeds)


def flags(args: argparse.Namespace, name: str, seed: int) -> list[object]:
    """The command line of one run."""
    each, words = max(1, args.steps // 6), VARIANTS[name].format(third=args.steps // 3).split()
    return [
        *("--model_size", args.model_size, "--seed", seed, "--max_steps", args.steps),
        *("--tokens_per_device", min(args.tokens, 2048), "--global_batch_tokens", args.tokens),
        *("--max_seq_length", 512, "--eval_steps", each, "--logging_steps", each, "--save_steps", 10**6),
        *("--precision", "bf16", "--report_to", "none", *words),
    ]


def run(*words: object) -> None:
    """Run one of the scripts; its complaint ends the race."""
    result = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.DEVNULL)
    if result.returncode:
        sys.exit(f"time_to_loss.py: error: {words[0]} failed")


def loss_of_test_split(output: Path, folder: Path) -> float:
    """What perplexity.py prints of the final model, of the sequences of the test split."""
    split, _ = open_held_out(folder.parent, folder.name, longest=512)
    model = load_masked_lm(str(output / FINAL_MODEL), torch.device("cpu"), bf16=False)
    return held_out_figures(model, split)["eval_loss"]


def report(args: argparse.Namespace, curves: dict, tests: dict, speeds: dict) -> None:
    """The table and the picture of what has been run so far."""
    done = {name: runs for name, runs in curves.items() if runs}
    ends = {name: statistics.mean(run[args.steps] for run in runs) for name, runs in done.items()}
    bar = min((end for name, end in ends.items() if name.startswith("AdamW")), default=None)
    print(f"\n| | runs | loss, step {args.steps} | lowest, highest | test | tokens to the bar | tokens/s |")
    print("|---|---|---|---|---|---|---|")
    for name, runs in done.items():
        last = [run[args.steps] for run in runs]
        reached = [crossing(run, bar) for run in runs] if bar else []
        tokens = "not reached" if None in reached or not reached else f"{statistics.mean(reached):.0%}"
        print(f"| {name} | {len(runs)} | {ends[name]:.4f} | {min(last):.4f}, {max(last):.4f} "
              f"| {statistics.mean(tests[name]):.4f} | {tokens} "
              f"| {statistics.median(speeds[name]):,.0f} |", flush=True)  # fmt: skip
    figure, (panel,) = new_figure(6, 4)
    for name, runs in done.items():
        steps = sorted(runs[0])
        of_step = [[run[step] for run in runs] for step in steps]
        tokens = [step * args.tokens for step in steps]
        (line,) = panel.plot(tokens, list(map(statistics.mean, of_step)), label=name)
        panel.fill_between(
            tokens, list(map(min, of_step)), list(map(max, of_step)), alpha=0.2, color=line.get_color()
        )
    if bar:
        panel.axhline(bar, color="grey", linestyle=":", label="the bar: the best AdamW's end")
    panel.set_xlabel("tokens")
    panel.set_ylabel("validation loss (nats)")
    panel.set_title(f"{args.model_size}, {args.tokens:,} tokens a step; bands: all seeds")
    panel.legend()
    save_figure(figure, args.folder / "race.png")
    (args.folder / "race.json").write_text(json.dumps(done))


def crossing(curve: dict[int, float], bar: float) -> float | None:
    """The share of the steps after which a run is at the bar, between two evaluations by a straight line."""
    steps = sorted(curve)
    for before, after in itertools.pairwise(steps):
        if curve[before] > bar >= curve[after]:
            part = (curve[before] - bar) / (curve[before] - curve[after])
            return (before + part * (after - before)) / steps[-1]
    return None


if __name__ == "__main__":
    main()
