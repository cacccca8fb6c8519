"""Run an iterator in a thread of its own, so that the stages of a pipeline overlap."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterable[Item], depth: int = 4) -> Iterator[Item]:
    """The same items, made up to `depth` ahead by another thread. An exception there is raised here.

    When the consumer stops early, the thread waits where it is and does not keep the process alive.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    end = object()

    def produce() -> None:
        try:
            for item in items:
                ready.put((item, None))
            ready.put((end, None))
        except BaseException as error:  # handed over, not swallowed
            ready.put((end, error))

    threading.Thread(target=produce, daemon=True).start()
    while (message := ready.get())[0] is not end:
        yield message[0]
    if message[1] is not None:
        raise message[1]
