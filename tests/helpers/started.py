"""A Python that has imported all that a script imports, and forks for each of its runs.

    python tests/helpers/started.py SCRIPT

The imports of a training script take longer than the few steps of a test. A run is a process of its own, with
arguments, environment, output and exit code of its own, and begins with the script's first line.
Reads one JSON object a line: `arguments`, `environment`, `umask`, the files for `stdout` and `stderr`, and
Python to be run `before` the script, of a test that puts something of its own in the place of ours.
Answers with two lines: the process id, and when it has ended its exit code, negative for a signal.
"""

import importlib
import json
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    script = sys.argv[1]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="imports")
    if "torch" in sys.modules:  # a training draws its curve at the end
        importlib.import_module("matplotlib.backends.backend_agg")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        wanted = json.loads(line)
        child = os.fork()
        if not child:
            break
        print(child, file=answers)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers)
    else:
        return
    answers.close()
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY), (1, wanted["stdout"], os.O_WRONLY), (2, wanted["stderr"], os.O_WRONLY)
    ):  # fmt: skip
        os.dup2(os.open(path, flags), number)
    os.umask(wanted["umask"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    sys.argv = [script, *wanted["arguments"]]
    exec(wanted["before"], {})
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
