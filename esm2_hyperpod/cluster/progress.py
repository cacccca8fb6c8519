"""Wait for AWS with a line whenever something changed."""

import time
from collections.abc import Callable

from esm2_hyperpod.errors import UserError

POLL_SECONDS = 15


def wait_until(observe: Callable[[], tuple[str, bool]], limit_minutes: int) -> None:
    """Call `observe` until its second result is true, printing its first, with the time, when it changes.

    `observe` raises `UserError` where what is awaited can no longer happen; so does this function after
    `limit_minutes`, naming the last state and the command that goes on.
    """
    start, last = time.monotonic(), None
    while True:
        line, done = observe()
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        if line != last:
            print(f"  {minutes:3d}:{seconds:02d}  {line}", flush=True)
            last = line
        if done:
            return
        if minutes >= limit_minutes:
            raise UserError(
                f"after {minutes} minutes still: {line}; AWS goes on by itself (and bills): look with "
                "`hyperpod.py status`, or run the same command again to go on waiting"
            )
        time.sleep(POLL_SECONDS)
