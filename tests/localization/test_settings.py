"""What the command line of fine-tuning stands on needs no model library."""

import sys

from helpers.commands import run

SCRIPT = """
import sys
from esm2_hyperpod.imports import leave_out
leave_out("peft", "datasets", "scipy")
import esm2_hyperpod.localization.arguments
print({"peft", "bitsandbytes"} & set(sys.modules))
"""


def test_the_command_line_imports_neither_peft_nor_bitsandbytes():
    """transformers does unless it is told not to, as the dry run tells it, which reads these arguments."""
    assert run(sys.executable, "-c", SCRIPT).stdout.splitlines()[-1] == "set()"
