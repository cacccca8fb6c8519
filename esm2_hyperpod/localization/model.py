"""The tuned model: ESM-2 with pooling and a head; how it is built, adapted and loaded.

It is a plain `EsmForSequenceClassification`, or for one label a residue `EsmForTokenClassification`, perhaps
with a peft adapter.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    BitsAndBytesConfig,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmPreTrainedModel,
)

from esm2_hyperpod.console import in_progress
from esm2_hyperpod.errors import UserError, first_sentence
from esm2_hyperpod.esm.model import quietly, read_config
from esm2_hyperpod.localization.pooling import Pooling
from esm2_hyperpod.localization.settings import (
    ADAPTER,
    ADAPTER_TUNINGS,
    LORA_TARGETS,
    Lora,
    Settings,
    read_settings,
)

ADAPTER_WEIGHTS = "adapter_model.safetensors"
CLASSES = {
    "localization": EsmForSequenceClassification,
    "residue": EsmForTokenClassification,
    "regression": EsmForSequenceClassification,
}


def build(
    settings: Settings, lora: Lora, device: torch.device, bf16: bool, adapter: Path | None = None
) -> EsmPreTrainedModel | PeftModel:
    """A model ready for training: base weights, fresh pooling and head, LoRA where `tuning` asks for it.

    With `adapter`, that folder's LoRA, pooling and head instead of fresh ones. `bf16` is as in `load_base`.
    Raises `UserError` if the base cannot be loaded.
    """
    model = load_base(settings, device, bf16)
    if adapter is not None:
        model = attach_adapter(model, adapter, trainable=True)
        choose_trainable(model, settings)
        return model
    pooling = Pooling.of(model, settings.pooling)
    pooling.start(model)
    if settings.tuning in ADAPTER_TUNINGS:
        numbers = "|".join(str(number) for number in range(pooling.base_layers))
        config = LoraConfig(
            task_type=TaskType.TOKEN_CLS if settings.task == "residue" else TaskType.SEQ_CLS,
            base_model_name_or_path=settings.base,
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=rf"esm\.encoder\.layer\.({numbers})\..*\.({LORA_TARGETS[lora.targets]})",
            modules_to_save=["classifier", *pooling.modules],
        )
        with quietly():
            model = get_peft_model(model, config)
    choose_trainable(model, settings)
    return model


def choose_trainable(model: torch.nn.Module, settings: Settings) -> None:
    """Set `requires_grad` of every parameter as `tuning` and `pooling` say."""
    pooling = Pooling.of(model, settings.pooling)
    for name, parameter in model.named_parameters():
        if "original_module" in name or "contact_head" in name:
            wanted = False  # the untouched copy that peft 0.21 keeps; a head that classification never reads
        elif pooling.holds(name):
            wanted = pooling.trains(name)
        else:
            wanted = settings.tuning == "full" or "classifier" in name or "lora_" in name
        if parameter.is_floating_point():
            parameter.requires_grad_(wanted)


def load_base(settings: Settings, device: torch.device, bf16: bool) -> EsmPreTrainedModel:
    """The base model with an untrained pooling layer and head; 4-bit where `tuning` is `qlora`.

    Weights are fp32; `bf16` is what 4-bit ones compute in, autocast being told by the caller.

    Raises `UserError` if it is no ESM-2 model, cannot be read, or lacks weights.
    """
    with quietly():
        try:
            config = read_config(settings.base)
            pooling = Pooling(settings.pooling, config.num_hidden_layers)
            with in_progress(f"loading {settings.base}"):
                model, report = CLASSES[settings.task].from_pretrained(
                    settings.base,
                    num_labels=len(settings.labels),
                    id2label=dict(enumerate(settings.labels)),
                    label2id={label: number for number, label in enumerate(settings.labels)},
                    problem_type=_problem(settings),
                    num_hidden_layers=pooling.base_layers + pooling.layers,
                    quantization_config=_four_bit(pooling, bf16) if settings.tuning == "qlora" else None,
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
                f"--model_name_or_path {settings.base}: cannot be loaded ({first_sentence(error)}); "
                "check the name and the network, or give the folder of a complete ESM-2 model"
            ) from None
    fresh = ("classifier.", "esm.contact_head.")
    missing = {name for name in report["missing_keys"] if not pooling.holds(name)}
    wrong = {name for name, *_ in report["mismatched_keys"]}
    unfit = {name for name in missing | wrong if not name.startswith(fresh)}
    if unfit:
        raise UserError(
            f"--model_name_or_path {settings.base}: {len(unfit)} of its weights are missing or of the wrong "
            f"size ({min(unfit)}); give the folder of a complete ESM-2 model"
        )
    # Not used here, but saved and loaded: transformers 5.20 leaves it in the size of the base.
    contacts = model.esm.contact_head.regression
    if contacts.weight.shape[1] != contacts.in_features:
        contacts.weight = torch.nn.Parameter(contacts.weight.new_zeros(1, contacts.in_features))
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On CPUs with AVX512-BF16, bitsandbytes 0.50 lets the first evaluation leave the weights in a
            # layout that passes no gradient on. Not needed once its forward restores them for training.
            module.support_avx512bf16_for_cpu = False
    return model


def load_tuned(folder: Path, device: torch.device, bf16: bool) -> torch.nn.Module:
    """A tuned model, frozen and in evaluation mode. Raises `UserError` if it is corrupt.

    `bf16` is as in `load_base`.
    """
    if (folder / ADAPTER).is_file():
        model = attach_adapter(load_base(read_settings(folder), device, bf16), folder)
    else:
        with _corrupt(folder), quietly():
            model = CLASSES[read_settings(folder).task].from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True
            )
        model.to(device)
    return model.requires_grad_(False).eval()


def attach_adapter(model: torch.nn.Module, folder: Path, trainable: bool = False) -> PeftModel:
    """The base with the adapter in `folder`. Raises `UserError` if that is corrupt."""
    if not (folder / ADAPTER_WEIGHTS).is_file():  # peft would look for it on the hub
        raise UserError(f"{folder}: no {ADAPTER_WEIGHTS}; copy the whole adapter/ folder, or train again")
    with _corrupt(folder), quietly():
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def restore_adapter(model: PeftModel, folder: Path) -> None:
    """Put saved adapter weights (pooling and head included) into a model built the same way."""
    weights = load_file(folder / ADAPTER_WEIGHTS)
    unused = set_peft_model_state_dict(model, weights).unexpected_keys
    assert not unused, f"{folder}: holds weights this model has no place for: {unused[0]}"


def dequantized(model: EsmPreTrainedModel) -> EsmPreTrainedModel:
    """A 4-bit model as a plain one in fp32, with the values that its 4-bit weights stand for."""
    with quietly():
        return model.dequantize()


def judges_residues(model: torch.nn.Module) -> bool:
    """Whether the model gives logits for each token, not for each protein."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    return isinstance(model, EsmForTokenClassification)


def four_bit_weights(model: torch.nn.Module) -> tuple[int, int]:
    """Number of linear layers held in 4 bits, and the bytes of their weights."""
    weights = [p for p in model.parameters() if type(p).__name__ == "Params4bit" and p.dtype == torch.uint8]
    return len(weights), sum(weight.numel() for weight in weights)


def _problem(settings: Settings) -> str | None:
    """What transformers calls the task, for who trains the model further without us."""
    if settings.task == "localization":
        return "multi_label_classification" if settings.multi_label else "single_label_classification"
    return "regression" if settings.task == "regression" else None


@contextlib.contextmanager
def _corrupt(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise over a corrupt folder into one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        reason = first_sentence(error)
        raise UserError(f"{folder}: the tuned model cannot be loaded ({reason}); train again") from None


def _four_bit(pooling: Pooling, bf16: bool) -> BitsAndBytesConfig:
    # The head learns in full precision: a quantized one takes no gradient. The pooling layer is fresh.
    kept = ["classifier", "esm.contact_head", *(f"esm.{name}" for name in pooling.modules)]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
        llm_int8_skip_modules=kept,
    )
