"""Which model is asked about: a size of ESM-2, the architecture of a folder, and what differs from it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.sizes import SHAPE, SIZES, Size


@dataclass(frozen=True)
class Model:
    """A size, and `train.py`'s flags that ask for it."""

    size: Size
    flags: Mapping[str, object]

    @property
    def name(self) -> str:
        """For people: `8M, hidden_size 640`."""
        flags = dict(self.flags)
        first = flags.pop(next(iter(flags)))
        return ", ".join([str(first), *(f"{name} {value}" for name, value in flags.items())])


def find_model(
    model_size: str | None,
    folder: str | None,
    shape: Mapping[str, int | None],
    flag: str = "config_name",
) -> Model:
    """As `train.py` would train it (`esm.model.build_config`), without its libraries.

    Args:
        folder: whose architecture it is, or facebook/esm2_*, instead of `model_size`; `flag` gives it.
        shape: those of `SHAPE` that are given in place of the size's or the folder's.

    Raises `UserError` for what is no model.
    """
    shape = {name: value for name, value in shape.items() if value is not None}
    if folder:
        flags, given = {flag: folder}, _read_shape(folder, flag) | shape
    elif model_size in SIZES:
        size = SIZES[model_size]
        flags, given = (
            {"model_size": model_size},
            dict(zip(SHAPE, (size.layers, size.width, size.heads))) | shape,
        )
    else:
        raise UserError(f"--model_size {model_size}: not one of {', '.join(SIZES)}")
    if min(given.values()) < 1 or given["hidden_size"] % (2 * given["num_attention_heads"]):
        raise UserError(
            f"--hidden_size {given['hidden_size']} --num_attention_heads {given['num_attention_heads']}: "
            "the width must be an even multiple of the heads"
        )
    return Model(Size.from_config(given), flags | shape)


def _read_shape(name: str, flag: str) -> dict[str, int]:
    """Of a folder's config.json, or of facebook/esm2_* by its name; fetches nothing."""
    known = re.fullmatch(r"facebook/esm2_t\d+_(\w+)_UR50D", name)
    if known and known[1] in SIZES:
        size = SIZES[known[1]]
        return dict(zip(SHAPE, (size.layers, size.width, size.heads, size.feed_forward)))
    try:
        read = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        return {figure: int(read[figure]) for figure in SHAPE}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--{flag} {name}: no config.json of an ESM-2 model there ({type(error).__name__}); "
            "give a model folder or facebook/esm2_t33_650M_UR50D"
        ) from None
