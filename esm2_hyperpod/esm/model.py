"""A configuration from scratch; what a folder or a hub name holds; the model a run leaves."""

import contextlib
import difflib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, EsmConfig, EsmForMaskedLM
from transformers import logging as transformers_logging

from esm2_hyperpod.alphabet import MASK, PAD, TOKENS, build_tokenizer
from esm2_hyperpod.artifacts import folder_size, whole_folder
from esm2_hyperpod.console import in_progress
from esm2_hyperpod.errors import UserError, first_sentence
from esm2_hyperpod.sizes import SHAPE, SIZES, Size, published_name, size_in

FINAL_MODEL = "final_model"


def build_config(model_size: str, config_name: str | None = None, **shape: int | None) -> EsmConfig:
    """The configuration of facebook/esm2_* at one of `SIZES`, or that of a folder or hub model.

    Args:
        shape: `num_hidden_layers`, `hidden_size`, `num_attention_heads`, `intermediate_size`, where given in
            place of what the size has.

    Raises `UserError` for a size or a shape that is none.
    """
    shape = {name: value for name, value in shape.items() if value is not None}
    if config_name:
        config = read_config(config_name, "--config_name")
        shape = {name: getattr(config, name) for name in SHAPE} | shape
    else:
        if model_size not in SIZES:
            raise UserError(f"--model_size {model_size}: not one of {', '.join(SIZES)}")
        size = SIZES[model_size]
        shape = dict(zip(SHAPE, (size.layers, size.width, size.heads))) | shape
        shape = {"intermediate_size": 4 * shape["hidden_size"]} | shape
        config = EsmConfig(
            vocab_size=len(TOKENS),
            pad_token_id=PAD,
            mask_token_id=MASK,
            max_position_embeddings=1026,
            position_embedding_type="rotary",
            layer_norm_eps=1e-5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            emb_layer_norm_before=False,
            token_dropout=True,
        )
    for name, value in shape.items():
        if value < 1:
            raise UserError(f"--{name} {value}: must be a number from 1 up")
    if shape["hidden_size"] % (2 * shape["num_attention_heads"]):
        raise UserError(
            f"--hidden_size {shape['hidden_size']} --num_attention_heads {shape['num_attention_heads']}: the "
            "width must be an even multiple of the heads (rotary positions turn pairs)"
        )
    config.update(shape)
    return config


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Hold back transformers' bars and table of weights, which callers judge, and peft's warnings."""
    transformers_logging.disable_progress_bar()  # a log file would keep each of its states
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(level)


def check_model_folder(name_or_path: str, flag: str = "--model_name_or_path") -> None:
    """Refuse a local path that is no model, before a library answers with a long traceback.

    A name with no folder of that name is left for the hub (facebook/esm2_t6_8M_UR50D).
    """
    path = Path(name_or_path).expanduser()
    if name_or_path.startswith("~") and (path / "config.json").is_file():
        raise UserError(f"{flag} {name_or_path}: the shell left the ~ alone; write {path}")
    looks_local = name_or_path.startswith((".", "/", "~")) or path.exists()
    if looks_local and not (path / "config.json").is_file():
        raise UserError(
            f"{flag} {name_or_path}: no model there (no config.json); "
            "give a final_model/ folder or a name such as facebook/esm2_t6_8M_UR50D"
        )
    names = [name for size in SIZES if (name := published_name(size))]
    means_esm2 = size_in(name_or_path) or name_or_path.lower().startswith(("esm2", "facebook/esm2"))
    if not looks_local and means_esm2 and name_or_path not in names:
        size = size_in(name_or_path)
        near = (size and published_name(size)) or difflib.get_close_matches(name_or_path, names, cutoff=0)[0]
        raise UserError(f"{flag} {name_or_path}: no model of that name; did you mean {near}?")


def read_config(name_or_path: str, flag: str = "--model_name_or_path") -> EsmConfig:
    """The configuration of the ESM-2 model that `flag` names, from its folder or the hub.

    Raises `UserError` if there is none, it cannot be had, or it is another kind of model.
    """
    check_model_folder(name_or_path, flag)
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{flag} {name_or_path}: cannot be loaded ({first_sentence(error)}); "
            "check the name and the network, or give the folder of a complete ESM-2 model"
        ) from None
    if config.model_type != "esm" or config.vocab_size != len(TOKENS):
        raise UserError(
            f"{flag} {name_or_path}: no ESM-2 model (model type {config.model_type}, "
            f"{getattr(config, 'vocab_size', '?')} tokens); give a final_model/ folder or facebook/esm2_*"
        )
    return config


def find_size(name_or_path: str) -> Size:
    """The size of a model folder, by its config, or of facebook/esm2_*, by its name; fetches nothing.

    Raises `UserError` if it is neither.
    """
    check_model_folder(name_or_path)
    config = Path(name_or_path) / "config.json"
    try:
        if config.is_file():
            read = json.loads(config.read_text(encoding="utf-8"))
            return Size.from_config(read)
        name = re.fullmatch(r"facebook/esm2_t\d+_(\w+)_UR50D", name_or_path)
        return SIZES[name.group(1)]
    except (ValueError, KeyError, AttributeError):
        raise UserError(
            f"{name_or_path}: of unknown size; give a model folder or facebook/esm2_t6_8M_UR50D, "
            "t12_35M, t30_150M, t33_650M, t36_3B or t48_15B"
        ) from None


def save_final_model(
    weights: dict[str, torch.Tensor], config: EsmConfig, output_dir: Path, card: str
) -> None:
    """Write `output_dir/final_model`, an ordinary Hugging Face folder; `card` is its README.md.

    `weights` is the whole state dict. `Trainer.save_model` writes nothing under FSDP with sharded checkpoints
    (transformers 5.23), so the caller gathers it. Called on one rank.
    """
    with torch.device("meta"):  # takes over `weights` instead of making more of them
        plain = EsmForMaskedLM(EsmConfig.from_dict(config.to_dict()))
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    title, size = f"writing {FINAL_MODEL}", sum(tensor.nbytes for tensor in plain.parameters())
    with (
        whole_folder(output_dir / FINAL_MODEL) as temporary,
        in_progress(title, lambda: folder_size(temporary), size),
    ):
        plain.save_pretrained(temporary, save_original_format=False)  # see ResumableTrainer._save
        build_tokenizer().save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
