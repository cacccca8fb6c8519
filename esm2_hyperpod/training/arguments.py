"""Command lines made of dataclasses, with mistakes answered in one line."""

import sys
from pathlib import Path

from transformers import HfArgumentParser

from esm2_hyperpod.errors import UserError


def parse(*dataclasses: type) -> tuple:
    """The dataclasses filled from `sys.argv`. Raises `UserError` for a flag that none of them has."""
    script = Path(sys.argv[0]).name
    usage = f"python {script} FLAGS   (python {script} --help lists them)"
    parser = HfArgumentParser(dataclasses, usage=usage, allow_abbrev=False)  # --learning_rat is a mistake
    *filled, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if unknown:
        raise UserError(f"unknown: {' '.join(unknown)}; python {script} --help lists what there is")
    return tuple(filled)
