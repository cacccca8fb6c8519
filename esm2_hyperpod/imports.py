"""What a script must settle before it imports transformers."""

import logging


def without_peft() -> None:
    """Have transformers take peft for not installed, in a script that has no use for it.

    transformers 5.23 imports peft, and with it bitsandbytes, wherever it finds them (`trainer_utils.py`): two
    seconds of every start, and a warning on some processors. It has no setting for that. Not needed any more
    once transformers imports peft where it uses it.
    """
    import transformers.utils

    transformers.utils.is_peft_available = lambda: False


def without_kernels_warning() -> None:
    """Have bitsandbytes leave out a warning that it logs when it is imported on CPUs with AVX512-BF16.

    "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'" (bitsandbytes
    0.50, `backends/cpu/ops.py`). Nothing is wrong then: it has a function of its own. Not needed any more
    once that is no warning.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.addFilter(lambda record: "gemm_4bit_forward" not in record.getMessage())
