"""Learning-rate schedules as factors of the peak rate; each a pure function of the number of updates made."""

import math
from collections.abc import Callable


def esm2_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """ESM-2's schedule: linear warm-up, linear decay to a tenth by 90% of the run, then held there.

    Lin et al. 2023, supplementary A.2.4: 2,000 warm-up steps, decay over 90% of 500,000 updates.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 1.0 - 0.9 * _progress(step, warmup_steps, 0.9 * total_steps)


def cosine_hold_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up, half a cosine down to a tenth by 90% of the run, then held there."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.55 + 0.45 * math.cos(math.pi * _progress(step, warmup_steps, 0.9 * total_steps))


def _progress(step: int, start: float, end: float) -> float:
    return min(1.0, max(0.0, (step - start) / max(1.0, end - start)))


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "esm2": esm2_factor,
    "cosine_hold": cosine_hold_factor,
}
