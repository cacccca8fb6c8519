#!/usr/bin/env python3
"""Embeddings, effects of variants and filled masks against fair-esm 2.0.0 and transformers: the same weights.

    python benchmarks/parity.py --model_size 8M --proteins 50

The weights are random, the proteins synthetic. Prints Markdown: the largest difference of each.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, EsmForMaskedLM, pipeline
from transformers import logging as transformers_logging

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.fair_esm import fair_esm_copy  # noqa: E402

from esm2_hyperpod.alphabet import AMINO_ACIDS, build_tokenizer  # noqa: E402
from esm2_hyperpod.download.synthetic import fasta_chunks  # noqa: E402
from esm2_hyperpod.esm.model import build_config  # noqa: E402
from esm2_hyperpod.inference.hidden_states import embed  # noqa: E402
from esm2_hyperpod.inference.masks import Protein, filled  # noqa: E402
from esm2_hyperpod.inference.model import load_masked_lm  # noqa: E402
from esm2_hyperpod.inference.variant_scores import COLUMNS, scores  # noqa: E402
from esm2_hyperpod.inference.variants import WildType, scan  # noqa: E402
from esm2_hyperpod.proteins.records import read_records  # noqa: E402

WINDOW, PSEUDO = 1024, 8  # variants whose pseudo-perplexity is compared: each takes a pass a residue


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_size", default="8M")
    parser.add_argument("--proteins", type=int, default=50)
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    torch.manual_seed(0)
    plain = EsmForMaskedLM(build_config(args.model_size)).eval()
    for parameter in plain.parameters():  # logits of some units, so that a difference would show
        parameter.normal_(std=0.08)
    meta = fair_esm_copy(plain)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        (folder / "a.fasta").write_bytes(b"".join(fasta_chunks(args.proteins, 0, io.StringIO())))
        proteins = [record.sequence[: WINDOW - 2] for record in read_records(folder / "a.fasta")]
        ours = load_masked_lm(str(folder), torch.device("cpu"), bf16=False)
        print(
            f"{args.model_size}, {args.proteins} proteins, {sum(map(len, proteins)):,} residues, CPU, fp32\n"
        )
        print("| compared | values | largest | largest difference |\n|---|---|---|---|")
        for line in [*embeddings(ours, meta, proteins), *variants(ours, meta, proteins)]:
            show(*line)
        show("fill-mask, probabilities, against transformers' pipeline", *masks(ours, folder, proteins))


def show(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    difference = np.abs(found - expected).max()
    print(f"| {name} | {found.size:,} | {np.abs(expected).max():.3g} | {difference:.1e} |", flush=True)


def tokens_of(meta, sequence: str) -> torch.Tensor:
    return meta.alphabet.get_batch_converter()([("protein1", sequence)])[2]


def embeddings(ours, meta, proteins: list[str]):
    layers = [0, meta.num_layers // 2, meta.num_layers]
    found = embed(ours, proteins, layers, ["mean", "cls", "residues"], WINDOW)
    states = [meta(tokens_of(meta, text), repr_layers=layers)["representations"] for text in proteins]
    states = [torch.stack([one[layer][0] for layer in layers], dim=1).numpy() for one in states]
    yield "mean of residues", found["mean"], np.stack([one[1:-1].mean(axis=0) for one in states])
    yield "`<cls>`", found["cls"], np.stack([one[0] for one in states])
    yield "each residue", found["residues"], np.concatenate([one[1:-1] for one in states])


def variants(ours, meta, proteins: list[str]):
    """By the rules of fair-esm's examples/variant-prediction/predict.py."""
    sequence = min(proteins, key=len)
    rows = list(scan([WildType("a", sequence)], 1))
    index = meta.alphabet.get_idx

    def masked(text: str) -> torch.Tensor:
        table = []
        for position in range(len(text) + 2):
            tokens = tokens_of(meta, text)
            tokens[0, position] = meta.alphabet.mask_idx
            table.append(meta(tokens)["logits"].log_softmax(-1)[0, position])
        return torch.stack(table)

    tables = {
        "masked-marginals": masked(sequence),
        "wt-marginals": meta(tokens_of(meta, sequence))["logits"].log_softmax(-1)[0],
    }
    for scoring, table in tables.items():
        expected = [
            float(table[1 + at, index(after)] - table[1 + at, index(sequence[at])])
            for row in rows
            for at, after in row.mutations
        ]
        yield COLUMNS[scoring][0], scores(ours, rows, scoring, WINDOW)[:, 0], np.array(expected)
    rows, expected = rows[:: len(rows) // PSEUDO][:PSEUDO], []
    for row in rows:
        text, table = row.sequence, masked(row.sequence)
        expected.append(sum(float(table[at, index(text[at - 1])]) for at in range(1, len(text) - 1)))
    yield "pseudo_ppl", scores(ours, rows, "pseudo-ppl", WINDOW)[:, 0], np.array(expected)


def masks(ours, folder: Path, proteins: list[str]) -> tuple[np.ndarray, np.ndarray]:
    plain = EsmForMaskedLM.from_pretrained(folder)
    fill = pipeline("fill-mask", model=plain, tokenizer=AutoTokenizer.from_pretrained(folder))
    found, expected = [], []
    for text in proteins:
        at = len(text) // 2
        rows = filled(ours, [(Protein("a", text), [at])], len(AMINO_ACIDS), WINDOW)
        by_residue = {row[4]: float(row[5]) for row in rows}
        theirs = {
            one["token_str"]: one["score"] for one in fill(f"{text[:at]}<mask>{text[at + 1 :]}", top_k=33)
        }
        found += [by_residue[residue] for residue in AMINO_ACIDS]
        expected += [theirs[residue] for residue in AMINO_ACIDS]
    return np.array(found), np.array(expected)


if __name__ == "__main__":
    main()
