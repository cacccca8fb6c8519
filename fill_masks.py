"""Which residues ESM-2 puts at masked positions, and how well it knows a protein: its pseudo-perplexity.

    python fill_masks.py --model_name_or_path runs/ddp/final_model --sequence 'MKT<mask>AKQR' --output_dir out
    python fill_masks.py --model_name_or_path facebook/esm2_t6_8M_UR50D --fasta family.fasta \
        --positions 12 40 --output_dir out
    python fill_masks.py --model_name_or_path runs/ddp/final_model --fasta family.fasta --perplexity \
        --output_dir out
    torchrun --nproc_per_node 8 fill_masks.py ...

Writes to --output_dir: masks.csv (the best residues at each position with their probabilities), or with
--perplexity perplexity.csv (each residue masked in turn: exp of the mean negative log-likelihood), and a
JSON file that says what it is made of. The same command again goes on where it was interrupted. Exit code 75:
asked to stop, to be continued.
"""

# ruff: noqa: E402
import argparse
import csv
import math
from pathlib import Path

from esm2_hyperpod.imports import leave_out

leave_out("peft", "datasets", "scipy", "sklearn")

from esm2_hyperpod.alphabet import AMINO_ACIDS
from esm2_hyperpod.console import positive
from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.inference.masks import (
    FILLED,
    PERPLEXITY,
    filled,
    perplexities,
    proteins,
    with_positions,
)
from esm2_hyperpod.inference.model import TAKES_LESS, load_masked_lm, refuse_tuned
from esm2_hyperpod.inference.start import (
    Parser,
    Session,
    chunk_tokens,
    is_done,
    made_of,
    on_all_ranks,
    records_of,
)
from esm2_hyperpod.streaming.resumable import CHUNK, ResumableFile, chunks, csv_bytes


def main() -> int | None:
    args = parser().parse_args()
    refuse_tuned(args.model_name_or_path)
    if args.top_k > len(AMINO_ACIDS):
        raise UserError(f"--top_k {args.top_k}: there are {len(AMINO_ACIDS)} amino acids")
    return on_all_ranks(args, lambda session: run(args, session))


def parser() -> Parser:
    flags = Parser(__doc__.split("\n\n")[0])
    flags.add_proteins()
    what = flags.add_mutually_exclusive_group()
    what.add_argument(
        "--positions",
        nargs="+",
        type=positive,
        help="positions from 1, each masked by itself in every protein; default: where <mask> is",
    )
    what.add_argument("--perplexity", action="store_true", help="score whole proteins instead")
    flags.add_argument("--top_k", type=positive, default=5, help="residues a position; default: 5")
    return flags


def run(args: argparse.Namespace, session: Session) -> int | None:
    source = "--sequence" if args.fasta is None else str(args.fasta)
    items = proteins(records_of(args), source, masks=not args.perplexity)
    if not args.perplexity:
        items = with_positions(items, args.positions)
    output = args.output_dir / ("perplexity.csv" if args.perplexity else "masks.csv")
    file = ResumableFile(output, made_of(args, *([] if args.perplexity else ["positions", "top_k"])))
    if is_done(file):
        session.say(f"{output}: finished already")
        return None
    model = load_masked_lm(args.model_name_or_path, session.device, args.precision == "bf16")
    session.describe(model, args)

    def cut(items):
        return chunks(items, CHUNK, weight, chunk_tokens(session.device))

    def weight(item) -> int:
        protein, masked = (item, len(item.sequence)) if args.perplexity else (item[0], len(item[1]))
        return masked * min(len(protein.sequence) + 2, args.max_length)

    def content(chunk: list) -> bytes:
        if args.perplexity:
            return csv_bytes(perplexities(model, chunk, args.max_length))
        return csv_bytes(filled(model, chunk, args.top_k, args.max_length))

    header = csv_bytes([PERPLEXITY if args.perplexity else FILLED])
    done = file.grow(items, header, content, cut, output.stem, stop_asked=session.stop_asked)
    if done is None:
        return session.leave()
    file.finish()
    session.say(f"{output}: {done:,} proteins", *(summary(output) if args.perplexity else []))
    return None


def summary(output: Path) -> list[str]:
    """The perplexity of all proteins together, in which each residue counts the same."""
    likelihood = residues = 0.0
    with open(output, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            likelihood += float(row["log_likelihood"])
            residues += int(row["residues"])
    return [f"perplexity of all {residues:,.0f} residues: {math.exp(-likelihood / residues):.4f}"]


if __name__ == "__main__":
    run_script(main, if_out_of_memory=TAKES_LESS)
