"""What a script must settle before it imports transformers."""

import importlib
import logging


def leave_out(*packages: str) -> None:
    """Have transformers and accelerate take packages for not installed, in a script that has no use for them.

    transformers 5.23 imports wherever it finds them peft, and with it bitsandbytes (`trainer_utils.py`),
    datasets, and with it pandas (`trainer.py`), and scipy (`loss_for_object_detection.py`), and until 5.20
    sklearn (`candidate_generator.py`); accelerate 1.15 imports peft when it saves under FSDP (`modeling.py`).
    That is half of the time of every start, on all processes at once. Neither has a setting for it. Ends when
    both import them where they use them.
    """
    for name in ("transformers.utils", "accelerate.utils.modeling"):  # the second imports more of the first
        module = importlib.import_module(name)
        for package in packages:
            setattr(module, f"is_{package}_available", lambda: False)


def without_kernels_warning() -> None:
    """Have bitsandbytes leave out a warning that it logs when it is imported on CPUs with AVX512-BF16.

    "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'" (bitsandbytes
    0.50, `backends/cpu/ops.py`). Nothing is wrong then: it has a function of its own. Not needed any more
    once that is no warning.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.addFilter(lambda record: "gemm_4bit_forward" not in record.getMessage())
