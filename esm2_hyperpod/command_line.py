"""Command lines whose mistakes are answered in one line, and scripts that say what they are for."""

import argparse
import difflib
import re
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from esm2_hyperpod.errors import UserError, script_name

_REWORDED = (  # argparse's words; ours
    (r"^argument ([^:/]+)[^:]*: ", r"\1 "),
    (r"invalid choice: '?(.*?)'? \(choose from (.*)\)", r"\1: not one of \2"),
    (r"invalid (?:int|float) value: '(.*)'", r"\1: not a number"),
    (r"expected one argument", "needs a value"),
    (r"the following arguments are required: ", "needed: "),
    (r"not allowed with argument ", "not allowed with "),
    (r"Truthy value expected: got (.*) but .*", r"\1: must be true or false"),
)


class OneLineErrors:
    """Mixed into an `ArgumentParser`: what cannot be used is a `UserError`, one line."""

    def error(self, message: str) -> None:
        """What argparse calls with its own words for a mistake. Raises `UserError`."""
        for pattern, words in _REWORDED:
            message = re.sub(pattern, words, message)
        raise UserError(f"{message}; {self.prog} --help says more")

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """As argparse's; takes --max-steps for --max_steps, and names the nearest of an unknown flag."""
        known = known_flags(self)
        words = [_underscored(word, known) for word in (sys.argv[1:] if args is None else args)]
        filled, unknown = self.parse_known_args(words, namespace)
        if unknown:
            raise UserError(f"{unknown_words(unknown, known)}; {self.prog} --help says more")
        return filled


class Parser(OneLineErrors, argparse.ArgumentParser):
    """An `ArgumentParser` that takes no shortened flags; `prog` is what a user types."""

    def __init__(self, **settings):
        settings.setdefault("prog", f"python {Path(sys.argv[0]).name}")
        super().__init__(allow_abbrev=False, **settings)


def known_flags(parser: argparse.ArgumentParser) -> set[str]:
    """All flags of a parser and of its subcommands."""
    flags = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags.update(*(known_flags(command) for command in action.choices.values()))
    return flags


def _underscored(word: str, known: set[str]) -> str:
    flag, equals, value = word.partition("=")
    underscored = "--" + flag[2:].replace("-", "_")
    return underscored + equals + value if flag.startswith("--") and underscored in known else word


def unknown_words(words: list[str], known: Iterable[str]) -> str:
    """What to say of words on the command line that are no flags of it."""
    flags = ["--" + word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    if not flags:
        return f"unknown: {' '.join(words)} (a value follows its flag)"
    elsewhere = set(flags) & set(known)
    if elsewhere:
        return f"{' '.join(sorted(elsewhere))}: of another command"
    meant = [near for flag in flags for near in difflib.get_close_matches(flag, known, n=1, cutoff=0.7)]
    return f"unknown: {' '.join(words)}" + (f" (did you mean {' '.join(meant)}?)" if meant else "")


def begin(text: str) -> None:
    """What a script does before imports that take seconds: `say_what_for`, and no traceback of a Ctrl-C."""
    say_what_for(text)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run_script`


def say_what_for(text: str, why: str = "arguments are needed") -> None:
    """Without arguments, print `text`'s first two paragraphs (what it does, and commands to copy) and end.

    For scripts that can do nothing then, for the reason `why`. The exit code is 1, so that no job takes it
    for a success.
    """
    if len(sys.argv) == 1:
        purpose = "\n\n".join(text.strip().split("\n\n")[:2])
        sys.exit(f"{purpose}\n\n{script_name()}: error: {why}; --help lists the flags")
