"""The command lines of both trainings: one line for every mistake, and our own flags first in the help."""

import argparse
import sys
from pathlib import Path

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from esm2_hyperpod.command_line import OneLineErrors, known_flags, unknown_words
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.training.arguments import RunArguments

TRAINERS = "Trainer's own flags"
MORE = "more"


class _Parser(OneLineErrors, HfArgumentParser):
    """transformers' parser of dataclasses, with our way to answer mistakes."""


def parse(arguments: type[RunArguments]) -> RunArguments:
    """The dataclass filled from `sys.argv`. Raises `UserError` for a flag that it lacks or refuses."""
    prog = f"python {Path(sys.argv[0]).name}"
    parser = _Parser(arguments, prog=prog, usage=f"{prog} FLAGS", allow_abbrev=False, add_help=False)
    words = with_config(sys.argv[1:])
    _refuse(arguments, words)
    for action in parser._actions:  # argparse has no public way to change a flag that it has been given
        if action.type is string_to_bool and action.nargs is None:
            action.nargs, action.const = "?", True  # a flag alone means true, also where the default is None
    if {"-h", "--help", "--help_all"} & set(words):
        print(_help(parser, arguments, everything="--help_all" in words))
        sys.exit(0)
    _, unknown = parser.parse_known_args(words)  # before the values are looked at
    if unknown:
        refused = arguments.refused()
        meant = {flag for flag in known_flags(parser) if flag.strip("-") not in refused}
        raise UserError(f"{unknown_words(unknown, meant)}; {prog} --help says more")
    (filled,) = parser.parse_args_into_dataclasses(words)
    return filled


def with_config(words: list[str]) -> list[str]:
    """The words of a command line, before them those of the YAML file that `--config` names: flags win.

    Raises `UserError` if the file is not a mapping of flags to values.
    """
    if "--config" not in words:
        return words
    at = words.index("--config")
    path = Path(words[at + 1]) if len(words) > at + 1 else None
    if path is None or path.suffix not in (".yaml", ".yml"):
        raise UserError(f"--config {path or ''}: name a YAML file; presets/ has some")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"--config {path}: cannot be read ({why}); presets/ has examples") from None
    scalars = isinstance(values, dict) and all(isinstance(one, str | int | float) for one in values.values())
    if not scalars:
        raise UserError(f"--config {path}: must be lines such as `model_size: 150M`; presets/ has examples")
    spelled = {name: str(one).lower() if isinstance(one, bool) else one for name, one in values.items()}
    ours = [f"--{name}={one}" for name, one in spelled.items()]
    return [*ours, *words[:at], *words[at + 2 :]]


def _refuse(arguments: type[RunArguments], words: list[str]) -> None:
    """Raise `UserError` for flags of Trainer's that mean nothing here, each with what does what was meant."""
    given = _given(words)
    refused = arguments.refused()
    lines = []
    for name, value in given.items():
        if name in arguments.USE_INSTEAD or {name, name.removeprefix("no_")} & refused:
            instead = arguments.instead_of(name, value, given)
            shown = f"--{name} {value}" if value else f"--{name}"
            lines.append(f"{shown} has no meaning here: {instead}")
    if lines:
        raise UserError("; ".join(lines))


def _given(words: list[str]) -> dict[str, str]:
    """Flag -> value, without dashes and as written; a flag alone has the value ''."""
    given = {}
    for word, following in zip(words, [*words[1:], "--"]):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            after = "" if following.startswith("--") else following
            given[name.replace("-", "_")] = value if equals else after
    return given


def _help(parser: _Parser, arguments: type[RunArguments], everything: bool) -> str:
    """The help text: our flags in the groups that `arguments` names, then Trainer's if `everything`."""
    actions = {}
    for action in parser._actions:
        if action.dest not in arguments.refused() and action.dest not in actions:  # no --no_packing
            action.option_strings = action.option_strings[:1]  # not --max-steps, too
            action.default = argparse.SUPPRESS if action.default is None else action.default
            actions[action.dest] = action
    ours = arguments.declared()
    named = {name for names in arguments.GROUPS.values() for name in names.split()}
    groups = {
        **{title: names.split() for title, names in arguments.GROUPS.items()},
        MORE: [name for name in actions if name in ours - named],
        TRAINERS: [name for name in actions if name not in ours | named] if everything else [],
    }
    rest = "--config FILE.yaml reads flags from a file; those on the command line win."
    rest += "" if everything else f" {parser.prog} --help_all lists {TRAINERS}, too."
    text = argparse.ArgumentParser(
        prog=parser.prog, usage=parser.usage, add_help=False, epilog=rest,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    for title, names in groups.items():
        group = text.add_argument_group(title)
        group._group_actions += [actions[name] for name in names if name in actions]
    return text.format_help()
