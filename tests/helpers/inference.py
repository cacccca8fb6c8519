"""The scripts that use a model, called in this process: to start one takes longer than its work."""

import functools
import importlib.util
import signal
import sys
from types import ModuleType
from unittest import mock

from esm2_hyperpod import imports
from helpers.commands import ROOT

PROTEINS = {
    "one": "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ",
    "short": "MW",
    "odd": "mkvXBUZOllaJ*",
    "empty": "",
    "long": "MSTNPKPQRKTKRNTNRRPQDVKFPGGGQIVGGVYLLPRRGPRLGVRATRKTSERSQPRG" * 2,
    "last": "GAVLIMFWPSTCYNQDEKRH",
}


@functools.cache
def script(name: str) -> ModuleType:
    """The script as a module. This process keeps peft, which other tests need."""
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), ROOT / name)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(imports, "leave_out", lambda *_: None):
        spec.loader.exec_module(module)
    return module


def call(name: str, *words: object) -> int | None:
    """The script's `main` with these arguments; the answers to signals are put back."""
    answers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        with mock.patch.object(sys, "argv", [name, *map(str, words)]):
            return script(name).main()
    finally:
        for number, answer in answers.items():
            signal.signal(number, answer)
