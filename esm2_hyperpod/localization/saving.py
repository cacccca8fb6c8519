"""Makes one plain model of an adapter and its base."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from esm2_hyperpod.alphabet import build_tokenizer
from esm2_hyperpod.localization.model import attach_adapter, load_base, read_adapter_settings


def merge_adapter(adapter: Path, folder: Path) -> None:
    """Write a model that `AutoModelForSequenceClassification` loads without peft, in fp32.

    The base keeps the values its 4-bit weights stood for, since those are what the adapter was trained on;
    merging into the original weights would change the predictions. The temperature goes into the last
    layer, so that a plain softmax of the logits is calibrated.

    Raises `UserError` if `adapter` is none or its base cannot be loaded.
    """
    settings = read_adapter_settings(adapter)
    model = load_base(replace(settings, tuning="lora"), torch.device("cpu"), bf16=False)
    if settings.tuning == "qlora":
        round_to_4_bits(model, model.config.num_hidden_layers - (settings.pooling != "cls"))
    merged = attach_adapter(model, adapter).merge_and_unload()
    with torch.no_grad():
        for parameter in merged.classifier.out_proj.parameters():
            parameter.div_(settings.temperature)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    merged.save_pretrained(temporary)
    build_tokenizer().save_pretrained(temporary)
    replace(settings, tuning="full", temperature=1.0).save(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def round_to_4_bits(model: torch.nn.Module, layers: int) -> None:
    """Replace the linear weights of the first `layers` layers by what NF4 with double quantization keeps."""
    for layer in model.esm.encoder.layer[:layers]:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                packed, state = quantize_4bit(module.weight.data, compress_statistics=True, quant_type="nf4")
                module.weight.data = dequantize_4bit(packed, state)
