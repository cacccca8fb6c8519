"""The classifier: ESM-2, a way of pooling its residues, a head; and how it is tuned, saved and loaded.

Every tuned model is a plain `EsmForSequenceClassification`, which classifies the `<cls>` token. Pooling
other than `cls` is one more ESM layer on top, in which `<cls>` looks at all tokens:

- `mean`: queries are zero, so attention is uniform, values are the identity, and the layer's output
  at `<cls>` is the mean of the last representations (normalised once more by the final LayerNorm).
- `attention`: starts as `mean`; its queries, keys and values are trained.

So whatever the pooling, a merged model loads with `AutoModelForSequenceClassification` alone.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, BitsAndBytesConfig, EsmForSequenceClassification
from transformers import logging as transformers_logging

from esm2_hyperpod.alphabet import TOKENS
from esm2_hyperpod.artifacts import write_json_atomically
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.esm.model import check_model_folder
from esm2_hyperpod.localization.metrics import fit_temperature

SETTINGS = "localization.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_TUNINGS = ("qlora", "lora")
TUNINGS = (*ADAPTER_TUNINGS, "head", "full")
POOLINGS = ("cls", "mean", "attention")
LORA_TARGETS = {"all": "query|key|value|dense", "attention": "query|key|value"}
MEAN_WEIGHT = 1e4
"""How much heavier the mean weighs than the residual stream of `<cls>` before the final LayerNorm."""


@dataclass
class Settings:
    """What must be known to use a tuned model, saved beside it as `localization.json`."""

    base: str
    labels: list[str]
    multi_label: bool
    tuning: str
    pooling: str
    max_seq_length: int
    crop: str
    temperature: float = 1.0

    def calibrate(self, logits: np.ndarray, targets: np.ndarray) -> None:
        """Fit the temperature on validation logits float[proteins, labels]."""
        self.temperature = fit_temperature(logits, targets)

    def save(self, folder: Path) -> None:
        """Write `localization.json` into `folder`."""
        write_json_atomically(folder / SETTINGS, asdict(self))


@dataclass(frozen=True)
class Lora:
    """Rank, scale (`alpha` / `rank`), dropout and which linear layers of each block are adapted."""

    rank: int
    alpha: int
    dropout: float
    targets: str


def saved_in(output_dir: Path, tuning: str) -> Path:
    """Where a run leaves its tuned model."""
    return output_dir / ("adapter" if tuning in ADAPTER_TUNINGS else "model")


def read_settings(folder: Path) -> Settings:
    """Raises `UserError` if `folder` was not written by the fine-tuning script."""
    path = folder / SETTINGS
    try:
        return Settings(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{folder}: no tuned model (no {SETTINGS}); give OUTPUT_DIR/adapter") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); train again") from None


def read_adapter_settings(folder: Path) -> Settings:
    """As `read_settings`; raises `UserError` also where `folder` is a tuned model but no adapter."""
    settings = read_settings(folder)
    if not (folder / ADAPTER).is_file():
        raise UserError(f"{folder}: a whole tuned model, no adapter; only an adapter/ folder will do here")
    return settings


def is_tuned(name_or_path: str) -> bool:
    """Whether a folder was written by the fine-tuning script, not by pretraining or the hub."""
    return (Path(name_or_path) / SETTINGS).is_file()


def build(
    settings: Settings, lora: Lora, device: torch.device, bf16: bool, adapter: Path | None = None
) -> EsmForSequenceClassification | PeftModel:
    """A model ready for training: base weights, fresh pooling and head, LoRA where `tuning` asks for it.

    With `adapter`, that folder's LoRA, pooling and head instead of fresh ones. `bf16` is as in `load_base`.
    Raises `UserError` if the base cannot be loaded.
    """
    model = load_base(settings, device, bf16)
    if adapter is not None:
        model = attach_adapter(model, adapter, trainable=True)
        choose_trainable(model, settings)
        return model
    _start_pooling(model, settings.pooling)
    if settings.tuning in ADAPTER_TUNINGS:
        base_layers = model.config.num_hidden_layers - (settings.pooling != "cls")
        numbers = "|".join(str(number) for number in range(base_layers))
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            base_model_name_or_path=settings.base,
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=rf"esm\.encoder\.layer\.({numbers})\..*\.({LORA_TARGETS[lora.targets]})",
            modules_to_save=["classifier", *_pooling_layer(settings.pooling, base_layers)],
        )
        with _quietly():
            model = get_peft_model(model, config)
    choose_trainable(model, settings)
    return model


def choose_trainable(model: torch.nn.Module, settings: Settings) -> None:
    """Set `requires_grad` of every parameter as `tuning` and `pooling` say."""
    pooling = _pooling_layer(settings.pooling, model.config.num_hidden_layers - 1)
    for name, parameter in model.named_parameters():
        if "original_module" in name or "contact_head" in name:
            wanted = False  # peft's untouched copy; a head that classification never reads
        elif pooling and f"{pooling[0]}." in name:
            wanted = settings.pooling == "attention" and ".attention.self." in name
        else:
            wanted = settings.tuning == "full" or "classifier" in name or "lora_" in name
        if parameter.is_floating_point():
            parameter.requires_grad_(wanted)


def load_base(settings: Settings, device: torch.device, bf16: bool) -> EsmForSequenceClassification:
    """The base model with an untrained pooling layer and head; 4-bit where `tuning` is `qlora`.

    Weights are fp32; `bf16` is what 4-bit ones compute in, autocast being told by the caller.

    Raises `UserError` if it is no ESM-2 model, cannot be read, or lacks weights.
    """
    check_model_folder(settings.base)
    with _quietly():
        try:
            config = AutoConfig.from_pretrained(settings.base)
            _check_esm2(settings.base, config)
            extra = _pooling_layer(settings.pooling, config.num_hidden_layers)
            model, report = EsmForSequenceClassification.from_pretrained(
                settings.base,
                num_labels=len(settings.labels),
                id2label=dict(enumerate(settings.labels)),
                label2id={label: number for number, label in enumerate(settings.labels)},
                problem_type="multi_label_classification"
                if settings.multi_label
                else "single_label_classification",
                num_hidden_layers=config.num_hidden_layers + len(extra),
                quantization_config=_four_bit(extra, bf16) if settings.tuning == "qlora" else None,
                device_map={"": device},
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # the contact head's size depends on the number of layers
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"--model_name_or_path {settings.base}: cannot be loaded ({_first_sentence(error)}); "
                "check the name and the network, or give the folder of a whole ESM-2 model"
            ) from None
    fresh = ("classifier.", "esm.contact_head.", f"esm.encoder.layer.{config.num_hidden_layers}.")
    unfit = {name for name in report["missing_keys"] if not name.startswith(fresh)}
    unfit |= {name for name, *_ in report["mismatched_keys"] if not name.startswith(fresh[:2])}
    if unfit:
        raise UserError(
            f"--model_name_or_path {settings.base}: {len(unfit)} of its weights are missing or of the wrong "
            f"size ({min(unfit)}); give the folder of a whole ESM-2 model"
        )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # An evaluation would else leave the weights in a layout whose kernel passes no gradient on.
            module.support_avx512bf16_for_cpu = False
    return model


def load_tuned(folder: Path, device: torch.device, bf16: bool) -> tuple[torch.nn.Module, Settings]:
    """A tuned model, frozen and in evaluation mode, and its settings. Raises `UserError` if it is damaged.

    `bf16` is as in `load_base`.
    """
    settings = read_settings(folder)
    if (folder / ADAPTER).is_file():
        model = attach_adapter(load_base(settings, device, bf16), folder)
    else:
        with _damaged(folder):
            model = EsmForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True
            )
        model.to(device)
    return model.requires_grad_(False).eval(), settings


def attach_adapter(model: torch.nn.Module, folder: Path, trainable: bool = False) -> PeftModel:
    """The base with the adapter in `folder`. Raises `UserError` if that is damaged."""
    if not (folder / ADAPTER_WEIGHTS).is_file():  # peft would look for it on the hub
        raise UserError(f"{folder}: no {ADAPTER_WEIGHTS}; copy the whole adapter/ folder, or train again")
    with _damaged(folder), _quietly():
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def four_bit_weights(model: torch.nn.Module) -> tuple[int, int]:
    """Number of linear layers held in 4 bits, and the bytes of their weights."""
    weights = [p for p in model.parameters() if type(p).__name__ == "Params4bit" and p.dtype == torch.uint8]
    return len(weights), sum(weight.numel() for weight in weights)


@contextlib.contextmanager
def _damaged(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise over a damaged folder into one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        reason = _first_sentence(error)
        raise UserError(f"{folder}: the tuned model cannot be loaded ({reason}); train again") from None


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:200]


def _four_bit(pooling_layer: list[str], bf16: bool) -> BitsAndBytesConfig:
    # The head learns in full precision: a quantized one takes no gradient. The pooling layer is fresh.
    kept = ["classifier", "esm.contact_head", *(f"esm.{name}" for name in pooling_layer)]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
        llm_int8_skip_modules=kept,
    )


def _pooling_layer(pooling: str, number: int) -> list[str]:
    return [] if pooling == "cls" else [f"encoder.layer.{number}"]


def _start_pooling(model: EsmForSequenceClassification, pooling: str) -> None:
    if pooling == "cls":
        return
    layer, final_norm = model.esm.encoder.layer[-1], model.esm.encoder.emb_layer_norm_after
    attention = layer.attention
    with torch.no_grad():
        attention.LayerNorm.load_state_dict(final_norm.state_dict())
        for linear in (
            attention.self.query,
            attention.self.value,
            attention.output.dense,
            layer.output.dense,
        ):
            linear.weight.zero_()
            linear.bias.zero_()
        attention.self.value.weight.fill_diagonal_(1.0)
        attention.output.dense.weight.fill_diagonal_(MEAN_WEIGHT)


def _check_esm2(name: str, config) -> None:
    if config.model_type != "esm" or config.vocab_size != len(TOKENS):
        raise UserError(
            f"--model_name_or_path {name}: no ESM-2 model (model type {config.model_type}, "
            f"{getattr(config, 'vocab_size', '?')} tokens); give a final_model/ folder or facebook/esm2_*"
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hold back the table of fresh weights, which `load_base` judges itself, and advice to peft's authors."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(level)
