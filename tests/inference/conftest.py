"""A random model as `final_model/` holds it, and the same in fair-esm."""

from pathlib import Path

import pytest
from helpers.fair_esm import fair_esm_copy, random_model
from helpers.inference import PROTEINS

from esm2_hyperpod.alphabet import build_tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "final_model"
    random_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def meta():
    """fair-esm's model, and its batch converter."""
    model = fair_esm_copy(random_model())
    return model, model.alphabet.get_batch_converter()


@pytest.fixture(scope="session")
def fasta(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("proteins") / "proteins.fasta"
    path.write_text("".join(f">{name} something\n{text}\n" for name, text in PROTEINS.items()))
    return path
