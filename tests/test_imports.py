"""What the scripts leave unimported, which all processes of a job would wait for at every start."""

import sys

import pytest
from helpers.commands import run

FIT = {"datasets", "pandas", "sklearn", "scipy.optimize", "scipy.stats"}  # a fit imports them itself
SCRIPT = """
import runpy, sys
sys.path.insert(0, ".")
runpy.run_path(sys.argv[1], run_name="imported")
print(sorted(set(sys.argv[2:]) & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "script, unused",
    [
        ("train.py", FIT | {"peft", "bitsandbytes"}),
        ("finetune_localization.py", FIT),
        ("esm2_hyperpod/jobs/dry_run.py", FIT | {"peft", "bitsandbytes"}),
    ],
)
def test_a_script_imports_what_it_uses(script, unused):
    assert run(sys.executable, "-c", SCRIPT, script, *unused).stdout.splitlines()[-1] == "[]"
