"""The model a run leaves behind: an ordinary Hugging Face folder, whatever trained it."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import EsmConfig, EsmForMaskedLM

from esm2_hyperpod.alphabet import build_tokenizer
from esm2_hyperpod.artifacts import whole_folder

FINAL_MODEL = "final_model"


def save_final_model(model: torch.nn.Module, config: EsmConfig, output_dir: Path) -> None:
    """Write `output_dir/final_model` (safetensors, config, tokenizer), whole or not at all.

    `Trainer.save_model` writes nothing under FSDP with sharded checkpoints, so the full weights are
    gathered here, on rank 0's CPU. Called on all ranks.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    if not dist.is_initialized() or dist.get_rank() == 0:
        plain = EsmForMaskedLM(EsmConfig.from_dict(config.to_dict()))
        plain.load_state_dict(weights)
        with whole_folder(output_dir / FINAL_MODEL) as temporary:
            plain.save_pretrained(temporary, save_original_format=False)  # see ResumableTrainer._save
            build_tokenizer().save_pretrained(temporary)
    if dist.is_initialized():
        dist.barrier()
