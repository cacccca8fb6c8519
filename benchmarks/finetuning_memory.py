#!/usr/bin/env python3
"""Memory of a fine-tuning step, as `--estimate_memory` says and as PyTorch takes it on this machine.

    python benchmarks/finetuning_memory.py [--sizes 150M 650M]

Models with random weights make one optimizer step before the measured one. Measured are the bytes of
parameters and 4-bit scales, of gradients and of the optimizer's state, of what autograd keeps for the
backward pass (`torch.autograd.graph.saved_tensors_hooks`), and the most that PyTorch's allocator holds
during the step, and during an evaluation, beyond what it held before (on the CPU: profiler). Prints Markdown.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import EsmForMaskedLM
from transformers import logging as transformers_logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.results import record  # noqa: E402
from esm2_hyperpod.esm.model import SIZES, Size, build_config  # noqa: E402
from esm2_hyperpod.localization.memory import LABELS, Estimate, Plan, estimate, evaluation_bytes  # noqa: E402
from esm2_hyperpod.localization.model import build  # noqa: E402
from esm2_hyperpod.localization.settings import NO_POOLING, Lora, Settings  # noqa: E402
from esm2_hyperpod.training.throughput import device_name  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STANDARD = Plan(SIZES["8M"], "qlora", "attention", 8, "all", 2, 128, False, False)
PLANS = {
    "8M": [
        replace(STANDARD, **changes)
        for changes in (
            {},
            {"proteins": 4, "length": 256},
            {"proteins": 4, "length": 256, "checkpointing": True},
            {"length": 512},
            {"half": True},
            {"half": True, "checkpointing": True},
            {"lora_targets": "attention", "pooling": "cls"},
            {"pooling": "mean"},
            {"tuning": "lora"},
            {"tuning": "lora", "half": True},
            {"tuning": "full"},
            {"tuning": "full", "half": True},
            {"tuning": "head"},
        )
    ],
    "35M": [
        replace(STANDARD, size=SIZES["35M"], **changes)
        for changes in ({"half": True}, {"half": True, "checkpointing": True}, {"tuning": "full"})
    ],
}


def usual_plans(size: Size) -> list[Plan]:
    """For the other sizes: what people run."""
    plan = replace(STANDARD, size=size, proteins=8, length=512, half=DEVICE.type == "cuda")
    return [plan, replace(plan, checkpointing=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=list(PLANS), choices=SIZES)
    parser.add_argument("--json", type=Path, help="also write the peaks here")
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    print(f"torch {torch.__version__}, {device_name(DEVICE)}; MB, measured / estimated\n")
    print(
        "| model | tuning | pooling | proteins x tokens | precision | weights | gradients + optimizer "
        "| kept for backward | peak of the step | evaluation of the same batch |"
    )
    print("|" + "---|" * 10)
    rows = {}
    for name in args.sizes:
        for plan in PLANS.get(name, usual_plans(SIZES[name])):
            measured, expected = measure(plan), estimate(plan)
            line = row(name, plan, measured, expected)
            print(line, flush=True)
            said = expected.gradients + expected.activations + expected.working
            rows[", ".join(cell.strip() for cell in line.split("|")[1:6])] = {
                "peak_mb_measured": measured["step"] / 1e6,
                "peak_mb_estimated": said / 1e6,
            }
            if args.json:
                record(args.json, {"task": "memory", "device": device_name(DEVICE)}, rows)


def row(name: str, plan: Plan, measured: dict[str, int], expected: Estimate) -> str:
    """A line of the table."""
    pairs = [
        (measured["weights"], expected.weights + expected.trained),
        (measured["gradients"] + measured["optimizer"], expected.gradients + expected.optimizer),
        (measured["activations"], expected.activations),
        (measured["step"], expected.gradients + expected.activations + expected.working),
        (measured["evaluation"], evaluation_bytes(plan, plan.tokens)),
    ]
    tuning = f"{plan.tuning}{', attention only' if plan.lora_targets == 'attention' else ''}"
    cells = [name, tuning + (", checkpointing" if plan.checkpointing else ""), plan.pooling]
    cells += [f"{plan.proteins} x {plan.length}", "bf16" if plan.half else "fp32"]
    amounts = [f"{got / 1e6:.1f} / {said / 1e6:.1f}" for got, said in pairs]
    if plan.checkpointing:
        amounts[2] = "-"  # a layer at a time is kept again during the backward pass, out of the hooks' sight
    return "| " + " | ".join([*cells, *amounts]) + " |"


def measure(plan: Plan) -> dict[str, int]:
    """Bytes by part of one real training step of this plan on the CPU."""
    with tempfile.TemporaryDirectory() as base:
        config = build_config("tiny")
        config.num_hidden_layers, config.hidden_size = plan.size.layers, plan.size.width
        config.num_attention_heads, config.intermediate_size = plan.size.heads, 4 * plan.size.width
        EsmForMaskedLM(config).save_pretrained(base)
        labels = [str(number) for number in range(LABELS)]
        settings = Settings(base, labels, False, plan.tuning, plan.pooling, plan.length, "ends")
        settings.task = "residue" if plan.pooling == NO_POOLING else "localization"
        lora = Lora(plan.lora_rank, 2 * plan.lora_rank, 0.0, plan.lora_targets)
        model = build(settings, lora, DEVICE, plan.half).train()
    if plan.checkpointing:
        names = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # transformers < 5.21
        enable = next(getattr(model, name) for name in names if hasattr(model, name))
        enable({"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    _step(model, plan, optimizer)
    saved = _Saved(model)
    with saved.counting():
        loss = _loss(model, plan)
    activations = saved.bytes
    loss.backward()
    gradients = sum(parameter.grad.nbytes for parameter in trained)
    state = sum(
        tensor.nbytes for slots in optimizer.state.values() for tensor in slots.values() if tensor.dim()
    )
    del loss, saved
    optimizer.zero_grad()
    training = _peak(lambda: _step(model, plan, optimizer))
    model.eval()
    with torch.inference_mode():
        evaluating = _peak(lambda: model(**_batch(plan)))
    return {
        "weights": sum(_bytes(parameter) for parameter in model.parameters()),
        "gradients": gradients,
        "optimizer": state,
        "activations": activations,
        "step": training,
        "evaluation": evaluating,
    }


def _step(model: torch.nn.Module, plan: Plan, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(2):  # micro-batches: the second one finds gradients
        _loss(model, plan).backward()
    optimizer.step()
    optimizer.zero_grad()


def _loss(model: torch.nn.Module, plan: Plan) -> torch.Tensor:
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=plan.half):
        logits = model(**_batch(plan)).logits
    return logits.float().logsumexp(dim=-1).mean()


def _batch(plan: Plan) -> dict[str, torch.Tensor]:
    """A batch in which one protein is a token shorter, so that there is a mask to keep."""
    ids = torch.full((plan.proteins, plan.length), 5, device=DEVICE)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return {"input_ids": ids, "attention_mask": mask}


class _Saved:
    """Counts the storages that autograd keeps, those of parameters and buffers left out."""

    def __init__(self, model: torch.nn.Module):
        self._seen = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        self._kept: list[torch.Tensor] = []
        self.bytes = 0

    def counting(self):
        """Count what is saved inside this context."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._kept.append(tensor)  # alive, so that no other tensor takes its address
            self.bytes += storage.nbytes()
        return tensor


def _bytes(parameter: torch.Tensor) -> int:
    """Of a parameter, the scales of a 4-bit one included."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.nbytes
    return parameter.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes


def _peak(work: Callable[[], object]) -> int:
    """The most bytes allocated at once while `work` ran, less those held before."""
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


if __name__ == "__main__":
    main()
