"""What a script must settle before it imports transformers."""

import logging


def without_peft() -> None:
    """Have transformers and accelerate take peft for not installed, in a script that has no use for it.

    transformers 5.23 imports peft, and with it bitsandbytes, wherever it finds them (`trainer_utils.py`);
    accelerate 1.15 does when it saves under FSDP (`modeling.py`). That takes two seconds of every start and
    warns on some processors. Neither has a setting for it. Ends when both import peft where they use it.
    """
    import transformers.utils

    transformers.utils.is_peft_available = lambda: False
    import accelerate.utils.modeling

    accelerate.utils.modeling.is_peft_available = lambda: False


def without_kernels_warning() -> None:
    """Have bitsandbytes leave out a warning that it logs when it is imported on CPUs with AVX512-BF16.

    "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'" (bitsandbytes
    0.50, `backends/cpu/ops.py`). Nothing is wrong then: it has a function of its own. Not needed any more
    once that is no warning.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.addFilter(lambda record: "gemm_4bit_forward" not in record.getMessage())
