"""Learning-rate schedules as factors of the peak rate; each a pure function of the number of updates made."""

import math
from collections.abc import Callable


def esm2_factor(step: int, warmup_steps: int, total_steps: int, floor: float) -> float:
    """ESM-2's schedule: linear warm-up, linear decay to `floor` by 90% of the run, then held there.

    Lin et al. 2023, supplementary A.2.4: 2,000 warm-up steps, decay to a tenth over 90% of 500,000 updates.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 1.0 - (1.0 - floor) * _progress(step, warmup_steps, 0.9 * total_steps)


def cosine_hold_factor(step: int, warmup_steps: int, total_steps: int, floor: float) -> float:
    """Linear warm-up, half a cosine down to `floor` by 90% of the run, then held there."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    wave = math.cos(math.pi * _progress(step, warmup_steps, 0.9 * total_steps))
    return (1.0 + floor) / 2 + (1.0 - floor) / 2 * wave


def wsd_factor(step: int, warmup_steps: int, total_steps: int, floor: float) -> float:
    """Warm-up, stable, decay: linear warm-up, constant, linear decay to `floor` over the last 20% of the run.

    Until the decay nothing depends on the length of the run, so that a checkpoint from before it may end a
    run of any length. Hu et al. 2024 (MiniCPM); the share of 20% is Haegele et al. 2024's.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 1.0 - (1.0 - floor) * _progress(step, max(warmup_steps, 0.8 * total_steps), total_steps)


def _progress(step: int, start: float, end: float) -> float:
    return min(1.0, max(0.0, (step - start) / max(1.0, end - start)))


SCHEDULES: dict[str, Callable[[int, int, int, float], float]] = {
    "esm2": esm2_factor,
    "cosine_hold": cosine_hold_factor,
    "wsd": wsd_factor,
}
