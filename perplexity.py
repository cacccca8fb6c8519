"""How well models know the proteins of a split that they were not trained on: loss, perplexity, accuracy.

    python perplexity.py --dataset_dir processed/arrow --model_name_or_path runs/ddp/final_model
    torchrun --nproc_per_node 8 perplexity.py --dataset_dir processed/arrow \
        --model_name_or_path runs/ddp/final_model facebook/esm2_t12_35M_UR50D

A line for each model, of the split that step 1 made and no training reads: 15% of its residues masked, the
same ones for every model, cropped to --max_seq_length as in training. With --split validation these are the
figures that train.py prints, if the length is the same.
"""

# ruff: noqa: E402
import argparse
from pathlib import Path

from esm2_hyperpod.command_line import Parser, begin
from esm2_hyperpod.imports import leave_out

if __name__ == "__main__":
    begin(__doc__)  # the imports below take seconds
leave_out("peft", "datasets", "scipy", "sklearn")

import torch
from accelerate import PartialState

from esm2_hyperpod.artifacts import read_manifest
from esm2_hyperpod.console import positive
from esm2_hyperpod.errors import run_script
from esm2_hyperpod.inference.model import load_masked_lm, refuse_tuned
from esm2_hyperpod.pretraining import validation
from esm2_hyperpod.pretraining.held_out import TOKENIZE, held_out_figures, open_held_out
from esm2_hyperpod.training.stopping import end_with_launcher


def main() -> None:
    flags = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--dataset_dir", type=Path, required=True, help="what step 1 wrote")
    flags.add_argument(
        "--model_name_or_path", nargs="+", required=True, help="final_model/ folders, or facebook/esm2_*"
    )
    flags.add_argument("--split", choices=("test", "validation", "train"), default="test")
    flags.add_argument("--max_seq_length", type=positive, default=1024, help="tokens; default: 1024")
    flags.add_argument("--limit_tokens", type=positive, help="about so many of the split; default: all")
    flags.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of the matrix products; default: fp32"
    )
    args = flags.parse_args()
    end_with_launcher()
    for name in args.model_name_or_path:
        refuse_tuned(name)
    state = PartialState(cpu=not torch.cuda.is_available())
    manifest = read_manifest(args.dataset_dir, made_by=TOKENIZE, holds="token_counts")
    split, tokens = open_held_out(args.dataset_dir, args.split, args.max_seq_length)
    limit = None if args.limit_tokens is None else max(1, args.limit_tokens // tokens)
    if state.is_main_process:
        counts = manifest["token_counts"]
        entropy = validation.residue_frequency_entropy(counts["train"], counts[args.split])
        print(
            f"{args.dataset_dir / args.split}: {len(split.store):,} sequences; guessing by residue frequency "
            f"has a loss of {entropy:.4f}",
            flush=True,
        )
    for name in args.model_name_or_path:
        model = load_masked_lm(name, state.device, args.precision == "bf16")
        figures = held_out_figures(model, split, limit)
        if state.is_main_process:
            print(
                f"{name}: loss {figures['eval_loss']:.4f}  perplexity {figures['eval_perplexity']:.3f}  "
                f"accuracy {figures['eval_accuracy']:.4f}  of {figures['eval_masked_tokens']:,.0f} residues",
                flush=True,
            )
    state.destroy_process_group()


if __name__ == "__main__":
    run_script(main, if_out_of_memory="give --precision bf16, or a smaller --max_seq_length")
