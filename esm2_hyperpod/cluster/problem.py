"""One mistake, one line: which field, what it holds, what is wrong, what to do."""

from typing import Any


def problem(field: str, value: Any, wrong: str, remedy: str) -> str:
    """For example `workers.count = 0: must be at least 1; set it to the nodes you want`."""
    shown = "(nothing)" if value is None else repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"{field} = {shown}: {wrong}; {remedy}"
