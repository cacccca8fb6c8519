"""ESM-2 as it is used: packed, frozen, in fp32 or bf16."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import EsmConfig

from esm2_hyperpod.console import in_progress
from esm2_hyperpod.errors import UserError, first_sentence
from esm2_hyperpod.esm.model import quietly, read_config
from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM, use_flash_attention_3

TUNED_FILES = ("localization.json", "adapter_config.json")
TAKES_LESS = "give --precision bf16, or a smaller --max_length"
HEAD = "lm_head."
UNUSED = ("esm.contact_head.", "esm.pooler.")


def load_masked_lm(name: str, device: torch.device, bf16: bool, head: bool = True) -> PackedEsmForMaskedLM:
    """The model in a folder such as `final_model/`, or of the hub. Without `head`, one that has none will do.

    Raises `UserError` if it is no ESM-2, cannot be read, or lacks weights.
    """
    with quietly():
        try:
            config = read_config(name)
            if config.position_embedding_type != "rotary":
                raise UserError(f"--model_name_or_path {name}: ESM-1, not ESM-2; give facebook/esm2_*")
            with in_progress(f"loading {name}"):
                model, report = PackedEsmForMaskedLM.from_pretrained(
                    name,
                    dtype=torch.float32,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"--model_name_or_path {name}: cannot be loaded ({first_sentence(error)}); "
                "check the name and the network, or give the folder of a complete ESM-2 model"
            ) from None
    absent = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    unfit = {key for key in absent if not key.startswith(UNUSED if head else (*UNUSED, HEAD))}
    if unfit:
        raise UserError(
            f"--model_name_or_path {name}: {len(unfit)} of its weights are missing or of the wrong size "
            f"({min(unfit)}); give the folder of a complete ESM-2 model"
        )
    return ready(model, device, bf16)


def from_encoder(
    config: EsmConfig, weights: dict[str, torch.Tensor], device: torch.device, bf16: bool
) -> PackedEsmForMaskedLM:
    """A model of an encoder's weights, whose names begin with `esm.`; its head is of no use."""
    model = PackedEsmForMaskedLM(config)
    kept = {name: weight for name, weight in weights.items() if not name.startswith(UNUSED)}
    absent = model.load_state_dict(kept, strict=False)
    assert not absent.unexpected_keys, absent.unexpected_keys[0]
    assert all(name.startswith((*UNUSED, HEAD)) for name in absent.missing_keys), absent.missing_keys
    return ready(model, device, bf16)


def ready(model: PackedEsmForMaskedLM, device: torch.device, bf16: bool) -> PackedEsmForMaskedLM:
    """The model where and how it computes. In bf16 its weights are held as they enter the products."""
    if bf16:
        model.compute_dtype = torch.bfloat16
        for parameter in model.parameters():  # not `model.to`, which takes the rotary frequencies along
            parameter.data = parameter.data.to(torch.bfloat16)
        use_flash_attention_3(device)
    return model.to(device).requires_grad_(False).eval()


def refuse_tuned(name: str) -> None:
    """Refuse a classifier, which has no language-model head, and name its base."""
    path = Path(name)
    if any((path / file).is_file() for file in TUNED_FILES):
        raise UserError(
            f"--model_name_or_path {name}: fine-tuned to classify, so it gives no probabilities of residues; "
            "give the model it was made from (base in its localization.json)"
        )
