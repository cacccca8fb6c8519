"""A base of two layers and labelled proteins that it can tell apart, for the tests of fine-tuning."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EsmForMaskedLM

from esm2_hyperpod.alphabet import build_tokenizer
from esm2_hyperpod.esm.model import build_config
from esm2_hyperpod.localization.model import build
from esm2_hyperpod.localization.settings import Lora, Settings

CPU = torch.device("cpu")
LORA = Lora(rank=4, alpha=8, dropout=0.0, targets="all")

FAVOURITES = {"Cytoplasm": "DE", "Extracellular": "CW", "Nucleus": "KR"}
COUNTS = {"Cytoplasm": 50, "Extracellular": 30, "Nucleus": 40}


def skip_if_torch_cannot(problem: str) -> None:
    """Skip a test in bf16 where torch 2.13 contradicts itself: its attention packs for AVX512, which the CPU
    has and ATEN_CPU_CAPABILITY hides."""
    if "pack_vnni2 is only supported when avx512 is supported" in problem:
        pytest.skip("torch has no attention in bf16 with this ATEN_CPU_CAPABILITY")


def write_base(folder: Path) -> None:
    """A random ESM-2 of 2 layers x 32, as `final_model/` holds it."""
    config = build_config("tiny")
    config.num_hidden_layers, config.hidden_size, config.num_attention_heads = 2, 32, 4
    config.intermediate_size = 128
    torch.manual_seed(0)
    EsmForMaskedLM(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def settings_of(base: Path, **changes) -> Settings:
    """LoRA and mean pooling on `base`, unless `changes` say otherwise."""
    return replace(Settings(str(base), list(COUNTS), False, "lora", "mean", 64, "ends"), **changes)


def untuned(settings: Settings) -> torch.nn.Module:
    """The model that fine-tuning with these settings starts from, in fp32."""
    return build(settings, LORA, CPU, bf16=False)


def save(model: torch.nn.Module, settings: Settings, folder: Path) -> None:
    """A tuned model as far as loading needs it."""
    model.save_pretrained(folder)
    settings.save(folder)


def write_labelled(path: Path, seed: int = 0) -> None:
    """CSV of 120 unrelated proteins of three labels, each with residues it is rich in."""
    random = np.random.default_rng(seed)
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "sequence", "label"))
        numbered = [label for label, count in COUNTS.items() for _ in range(count)]
        for number, label in enumerate(random.permutation(numbered)):
            rows.writerow((f"p{number}", protein(random, FAVOURITES[label]), label))


def write_fasta(path: Path, count: int, seed: int = 1) -> None:
    """FASTA of `count` proteins of all kinds and lengths."""
    random = np.random.default_rng(seed)
    kinds = list(FAVOURITES.values())
    with open(path, "w") as file:
        for number in range(count):
            file.write(f">q{number} something\n{protein(random, kinds[number % 3])}\n")


def protein(random: np.random.Generator, favourites: str) -> str:
    """A protein of 20 to 90 residues, a third of them `favourites`."""
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    weights = np.array([6.0 if letter in favourites else 1.0 for letter in letters])
    return "M" + "".join(random.choice(letters, random.integers(20, 90), p=weights / weights.sum()))
