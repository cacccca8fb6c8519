"""hyperpod.py in the tests' own process: importing boto3 anew takes longer than most commands."""

import runpy
import sys
from types import SimpleNamespace

import pytest
from helpers.commands import ROOT


@pytest.fixture
def hyperpod(monkeypatch, capsys):
    """Runs `hyperpod.py WORDS` and checks its exit code; gives what it printed and its error."""
    command = str(ROOT / "cluster_setup" / "hyperpod.py")

    def hyperpod(*words, code=0):
        monkeypatch.setattr(sys, "argv", [command, *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(command, run_name="__main__")
        output = capsys.readouterr()
        message = stop.value.code if isinstance(stop.value.code, str) else ""
        assert (1 if message else stop.value.code or 0) == code, output.out + message
        return SimpleNamespace(out=output.out, error=output.err + message)

    return hyperpod
