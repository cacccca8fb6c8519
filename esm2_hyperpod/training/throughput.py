"""Real residues a second, FLOPs and the GPU's peak: figures of speed that can be believed."""

import time
from typing import NamedTuple

import torch
import torch.distributed as dist
from transformers import EsmConfig

from esm2_hyperpod.sizes import Size

# Dense bf16 peaks in TFLOPS, from NVIDIA's (sparsity's doubled figures halved) and AMD's data sheets.
# The first entry counts whose words are all in the device's name: special boards come before their family.
PEAK_TFLOPS = {
    "A10G": 70.0,  # AWS's A10G; 125 is the A10
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "H100 PCIE": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "B200": 2250.0,
    "MI250X": 191.5,  # of one of its two dies (GCDs), each a device to PyTorch; 383.0 of both
    "MI300X": 1307.4,
}


def peak_tflops(device_name: str) -> float | None:
    """Dense bf16 peak of a CUDA device by its name, or None where it is not known."""
    words = set(device_name.upper().replace("-", " ").split())
    return next((peak for name, peak in PEAK_TFLOPS.items() if words.issuperset(name.split())), None)


def device_name(device: torch.device) -> str:
    """The accelerator's name, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


class Counts(NamedTuple):
    """What a micro-batch holds.

    Attributes:
        residues: amino acids, `<cls>` and `<eos>` not counted.
        tokens: tokens of real sequences.
        slots: tokens computed, padding included.
        squared_lengths: sum over sequences of the square of their length in tokens.
        masked: tokens to be predicted.
        sequences: of them all.
    """

    residues: int
    tokens: int
    slots: int
    squared_lengths: int
    masked: int
    sequences: int


class Meter:
    """Speed between two logs, over all ranks. Time spent evaluating or saving is left out."""

    def __init__(self, config: EsmConfig, device: torch.device):
        self._size = Size.from_config(config.to_dict())
        self._device = device
        self._peak = peak_tflops(device_name(device))
        self.restart()

    def restart(self) -> None:
        """Begin a new window now."""
        self._totals = torch.zeros(len(Counts._fields), dtype=torch.float64)
        self._steps = 0
        self._waited = 0.0
        self._paused = 0.0
        self._start = time.perf_counter()

    def add(self, counts: Counts) -> None:
        """Count one micro-batch of this rank."""
        self._totals += torch.tensor(counts, dtype=torch.float64)

    def add_waiting(self, seconds: float) -> None:
        """Count an optimizer step, and the time this rank waited for its data."""
        self._steps += 1
        self._waited += seconds

    def pause(self, seconds: float) -> None:
        """Leave out time that was not training."""
        self._paused += seconds

    def read(self, steps_left: int) -> dict[str, float]:
        """Figures since the last reading, summed over ranks; begins a new window. Called on all ranks.

        `mfu` is the share of the dense bf16 peak that the model's own FLOPs on real tokens make up;
        it is left out where the device's peak is not known.
        """
        seconds = max(1e-9, time.perf_counter() - self._start - self._paused)
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        totals = self._totals.to(self._device)
        if ranks > 1:
            dist.all_reduce(totals)
        counts = Counts(*totals.tolist())
        flops = self._size.training_flops(counts.tokens, counts.squared_lengths, counts.masked)
        figures = {
            "residues_per_second": counts.residues / seconds,
            "residues_per_second_per_device": counts.residues / seconds / ranks,
            "tokens_per_second": counts.tokens / seconds,
            "sequences_per_second": counts.sequences / seconds,
            "padding_share": 1 - counts.tokens / counts.slots,
            "tflops_per_device": flops / seconds / ranks / 1e12,
        }
        if self._peak:
            figures["mfu"] = figures["tflops_per_device"] / self._peak
        if self._device.type == "cuda":
            figures["peak_memory_gb"] = torch.cuda.max_memory_allocated(self._device) / 1e9
        figures["data_wait_seconds"] = self._waited
        figures["data_wait_share"] = self._waited / seconds
        figures["eta_seconds"] = steps_left * seconds / max(1, self._steps)
        self.restart()
        return figures
