"""Effects of variants, without training: how likely each is beside the wild type, by what ESM-2 has learned.

    python score_variants.py --model_name_or_path facebook/esm2_t33_650M_UR50D --fasta blat.fasta \
        --mutants dms.csv --output_dir out
    python score_variants.py --model_name_or_path runs/ddp/final_model --sequence MKTAYIAKQRQISF --scan \
        --output_dir out
    torchrun --nproc_per_node 8 score_variants.py ...

--mutants is a CSV file with a column mutant (A24G, several A24G:K30R, or WT) and, where --fasta holds several
proteins, a column id. Writes to --output_dir: variants.csv (the table with its scores; higher is more like a
natural protein), heatmap.png (single substitutions), variants.json. The same command again goes on where it
was interrupted. Exit code 75: asked to stop, to be continued.
"""

# ruff: noqa: E402
import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from esm2_hyperpod.imports import leave_out

leave_out("peft", "datasets", "scipy", "sklearn")

from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.inference.heat_map import draw_heat_map
from esm2_hyperpod.inference.model import TAKES_LESS, load_masked_lm, refuse_tuned
from esm2_hyperpod.inference.start import (
    Parser,
    Session,
    chunk_tokens,
    file_facts,
    is_done,
    made_of,
    on_all_ranks,
    records_of,
)
from esm2_hyperpod.inference.variant_scores import COLUMNS, scores, work
from esm2_hyperpod.inference.variants import Variant, VariantTable, scan, wild_types
from esm2_hyperpod.streaming.resumable import ResumableFile, chunks, csv_bytes

CHUNK = 1 << 16  # variants


def main() -> int | None:
    args = parser().parse_args()
    refuse_tuned(args.model_name_or_path)
    return on_all_ranks(args, lambda session: run(args, session))


def parser() -> Parser:
    flags = Parser(__doc__.split("\n\n")[0])
    flags.add_proteins()
    listed = flags.add_mutually_exclusive_group(required=True)
    listed.add_argument("--mutants", type=Path, help="CSV of the variants to score")
    listed.add_argument("--scan", action="store_true", help="or all single substitutions of each protein")
    flags.add_argument(
        "--scoring",
        nargs="+",
        choices=tuple(COLUMNS),
        default=["masked-marginals"],
        help="wt-marginals takes one pass a protein, masked-marginals one a position, pseudo-ppl one\n"
        "a position of each variant; default: masked-marginals",
    )
    flags.add_argument(
        "--first_residue",
        type=int,
        default=1,
        help="the number that --mutants gives the first residue; default: 1",
    )
    return flags


def run(args: argparse.Namespace, session: Session) -> int | None:
    source = "--sequence" if args.fasta is None else str(args.fasta)
    proteins = wild_types(records_of(args), source)
    asked = made_of(args, "scoring", "first_residue")
    if args.mutants:
        variants = VariantTable(args.mutants, proteins, args.first_residue)
        count, header, only = variants.check(), variants.header, variants.only
        asked["mutants"] = file_facts(args.mutants)
    else:
        variants, count, header = scan(proteins, args.first_residue), None, ["id", "mutant"]
        only = None
    columns = [column for scoring in dict.fromkeys(args.scoring) for column in COLUMNS[scoring]]
    if taken := set(columns) & set(header):
        raise UserError(f"{args.mutants}: has a column {min(taken)} already; rename it")
    output = args.output_dir / "variants.csv"
    file = ResumableFile(output, asked)
    if is_done(file):
        session.say(f"{output}: finished already")
        return None
    model = load_masked_lm(args.model_name_or_path, session.device, args.precision == "bf16")
    session.describe(model, args)
    if count:
        session.say(f"{args.mutants}: {count:,} variants")

    def cut(variants):
        return chunks(variants, CHUNK, weight, chunk_tokens(session.device))

    def weight(variant: Variant) -> float:
        return max(work(variant, scoring, args.max_length) for scoring in args.scoring)

    def content(chunk: Sequence[Variant]) -> bytes:
        parts = [scores(model, chunk, scoring, args.max_length) for scoring in dict.fromkeys(args.scoring)]
        numbers = np.concatenate(parts, axis=1)
        return csv_bytes(
            [*variant.row, *(f"{value:.6f}" for value in row)] for variant, row in zip(chunk, numbers)
        )

    head, title = csv_bytes([[*header, *columns]]), "scoring variants"
    done = file.grow(variants, head, content, cut, title, " variants", session.stop_asked)
    if done is None:
        return session.leave()
    if session.is_main:
        picture = args.output_dir / "heatmap.png"
        drawn = draw_heat_map(file.partial, columns[0], picture, only)
        print(f"{output}: {done:,} variants")
        if drawn:
            print(f"{picture}: the single substitutions of {drawn} protein(s)", flush=True)
    file.finish()
    return None


if __name__ == "__main__":
    run_script(main, if_out_of_memory=TAKES_LESS)
