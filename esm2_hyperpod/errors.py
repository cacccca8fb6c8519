"""How a script fails: one line that says what, where, why and which command helps."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TO_BE_CONTINUED = os.EX_TEMPFAIL
"""Exit code 75 of a run that saved and stopped early: the same command again resumes it."""


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one line and names the remedy."""


class LostPeer(Exception):
    """Another process of this run does not answer. The message is one line."""

    EXIT_CODE = 128 + signal.SIGABRT
    """As NCCL ends a process that has waited too long: the wrappers start such a run again."""


_OUT_OF_MEMORY = "can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"


def run_script(main: Callable[[], int | None], if_out_of_memory: str = "") -> None:
    """Run a script's `main`, turning what a user can fix into one line on stderr and exit code 1.

    `UserError`, the operating system's refusals (disk full, no permission, no such file) and too little
    memory become one line; anything else is a defect of ours and keeps its traceback. Ctrl-C exits with 130,
    `LostPeer` with its own code.

    Args:
        if_out_of_memory: what takes less.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # `command_line.begin` has taken it away
    try:
        sys.exit(main())
    except UserError as error:
        message = str(error)
    except LostPeer as error:
        sys.stdout.flush()
        print(f"{script_name()}: error: {error}", file=sys.stderr, flush=True)
        os._exit(error.EXIT_CODE)  # an orderly exit would wait for the peer once more
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print(f"{script_name()}: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        message = describe_os_error(error)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = ". ".join(" ".join(str(error).split()).split(". ")[:3]) or "out of memory"
        message = f"{said}; {if_out_of_memory or 'use a machine with more memory'}"
    if os.environ.get("RANK", "0") != "0":
        # Rank 0 mostly fails of the same, and the launcher then ends this rank before it repeats it.
        time.sleep(2)
    sys.stdout.flush()
    sys.exit(f"{script_name()}: error: {message}")


def script_name() -> str:
    """What a user knows the running program by."""
    script = Path(sys.argv[0])
    return script.parent.name if script.name == "__main__.py" else script.name


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU or the machine had no memory left, in the words of torch (2.13), CUDA or NumPy."""
    name, said = type(error).__name__, str(error)
    return (
        isinstance(error, MemoryError)
        or name == "OutOfMemoryError"
        or any(words in said for words in _OUT_OF_MEMORY)
    )


def describe_os_error(error: OSError) -> str:
    """One line for an operating-system refusal, with the remedy where there is a usual one."""
    remedies = {
        errno.ENOSPC: "free some space there (df -h) and run the same command again",
        errno.EDQUOT: "your quota is used up: free some space and run the same command again",
        errno.EACCES: "choose a folder you may write to, or change its permissions",
        errno.EROFS: "that file system is read-only: choose another folder",
        errno.ENOENT: "check the path",
        errno.EISDIR: "give a file in it",
        errno.EEXIST: "choose another folder",
        errno.ENOTDIR: "check the path: a part of it is a file",
    }
    where = f"{error.filename}: " if error.filename else ""
    remedy = remedies.get(error.errno)
    return f"{where}{error.strerror or first_sentence(error)}" + (f"; {remedy}" if remedy else "")


def first_sentence(error: Exception) -> str:
    """What a library says first, in one line."""
    return " ".join(str(error).split()).split(". ")[0][:200]


def problem(field: str, value: Any, wrong: str, remedy: str) -> str:
    """A line about one field of a file: what it holds, what is wrong with it, and what to do."""
    shown = "(nothing)" if value is None else repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"{field} = {shown}: {wrong}; {remedy}"
