"""Embeddings of proteins: a vector a protein (the mean of its residues, or <cls>) or a vector a residue.

    python embed.py --model_name_or_path runs/ddp/final_model --fasta proteins.fasta.gz --output_dir out
    python embed.py --model_name_or_path facebook/esm2_t6_8M_UR50D --fasta new.fasta --output_dir out \
        --include mean cls --layers 3 6 --dtype float16
    python embed.py --model_name_or_path runs/localization/adapter --fasta new.fasta --output_dir out \
        --include residues --format safetensors
    torchrun --nproc_per_node 8 embed.py ...

Writes to --output_dir: embeddings.parquet (id, residues, mean_6, ...), or embeddings.npy or .safetensors with
proteins.csv, and embeddings.json, which says what they are made of. Memory does not grow with the FASTA. The
same command again goes on where it was interrupted. Exit code 75: asked to stop, to be continued.
"""

# ruff: noqa: E402
import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from esm2_hyperpod.imports import leave_out, without_kernels_warning

leave_out("peft", "datasets", "scipy", "sklearn")
without_kernels_warning()

from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM
from esm2_hyperpod.inference import embedding_files
from esm2_hyperpod.inference.embedding_files import CONVERT, Column
from esm2_hyperpod.inference.hidden_states import KINDS, embed
from esm2_hyperpod.inference.model import TAKES_LESS, TUNED_FILES, from_encoder, load_masked_lm
from esm2_hyperpod.inference.start import Parser, Session, is_done, made_of, on_all_ranks, records_of
from esm2_hyperpod.proteins.records import Record, residues_of
from esm2_hyperpod.streaming.resumable import CHUNK, ResumableFile, chunks

CHUNK_VALUES = 1 << 26
"""Numbers in a chunk of vectors a residue: 256 MB."""


def main() -> int | None:
    args = parser().parse_args()
    if args.format == "npy" and len(args.layers) * len(args.include) > 1:
        raise UserError("--format npy holds one array: give one of --include and one of --layers")
    return on_all_ranks(args, lambda session: run(args, session))


def parser() -> Parser:
    flags = Parser(__doc__.split("\n\n")[0])
    flags.add_argument("--fasta", type=Path, required=True, help="proteins as FASTA (.gz too)")
    flags.set_defaults(sequence=None)
    flags.add_argument(
        "--include",
        nargs="+",
        choices=KINDS,
        default=["mean"],
        help="mean of the residues, <cls>, or a vector for each residue; default: mean",
    )
    flags.add_argument(
        "--layers",
        nargs="+",
        type=int,
        default=[-1],
        help="0 is the embedding, -1 the last layer; default: -1",
    )
    flags.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="on disk")
    flags.add_argument("--format", choices=tuple(CONVERT), default="parquet", help="default: parquet")
    return flags


def run(args: argparse.Namespace, session: Session) -> int | None:
    records = records_of(args)
    output = args.output_dir / f"embeddings.{args.format}"
    file = ResumableFile(output, made_of(args, "include", "layers", "dtype", "format"))
    if is_done(file):
        session.say(f"{output}: finished already")
        return None
    model = load(args.model_name_or_path, session.device, args.precision == "bf16")
    session.describe(model, args)
    columns = [Column(kind, layer) for kind in args.include for layer in numbers(args.layers, model)]
    width = model.config.hidden_size
    layout = embedding_files.schema(columns, width, args.dtype)
    in_memory = width * len(args.layers) if "residues" in args.include else 0

    def cut(records):
        return chunks(records, CHUNK, lambda record: len(record.sequence) * in_memory, CHUNK_VALUES)

    def content(chunk: Sequence[Record]) -> bytes:
        sequences = [residues_of(record.sequence) for record in chunk]
        layers = list(dict.fromkeys(column.layer for column in columns))
        arrays = embed(model, [text for text in sequences if text], layers, args.include, args.max_length)
        ids = [record.id for record in chunk]
        return embedding_files.batch(layout, ids, [len(text) for text in sequences], columns, arrays)

    header = layout.serialize().to_pybytes()
    title = f"embedding {args.fasta.name}"
    done = file.grow(records, header, content, cut, title, stop_asked=session.stop_asked)
    if done is None:
        return session.leave()
    file.finish(CONVERT[args.format])
    session.say(f"{output}: {done:,} proteins; {', '.join(column.name for column in columns)}")
    return None


def load(name: str, device: torch.device, bf16: bool) -> PackedEsmForMaskedLM:
    """A pretrained model, or a fine-tuned one without its classifier."""
    if not any((Path(name) / file).is_file() for file in TUNED_FILES):
        return load_masked_lm(name, device, bf16, head=False)
    from esm2_hyperpod.localization.encoder import tuned_encoder  # peft and bitsandbytes: slow to import

    return from_encoder(*tuned_encoder(Path(name)), device, bf16)


def numbers(layers: Sequence[int], model: PackedEsmForMaskedLM) -> list[int]:
    """Layers counted from 0; negative ones are counted from the last."""
    count = model.config.num_hidden_layers
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise UserError(f"--layers {layer}: the model has layers 0 to {count} (or -1 to {-count - 1})")
    return list(dict.fromkeys(layer % (count + 1) for layer in layers))


if __name__ == "__main__":
    run_script(main, if_out_of_memory=TAKES_LESS)
