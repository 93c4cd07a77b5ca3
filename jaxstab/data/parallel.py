"""Work done by processes, with the results in order."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from jaxstab.config import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(task: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result, None, None]:
    """Like `map`, by `workers` processes, which run at most two items each ahead of the consumer."""
    if workers <= 1:
        yield from map(task, items)
        return
    context = multiprocessing.get_context("spawn")  # not forked: JAX's threads may be running
    leash, hand = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_on_leash, initargs=(leash,))
    pending: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(task, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a tokenising process died (out of memory?): try again with a smaller data.workers") from error
    finally:
        hand.close()
        pool.shutdown(cancel_futures=True)


def _on_leash(leash: Connection) -> None:
    """Ends this process when the parent lets go of the pipe's other end: is done, fails, or is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def watch() -> None:
        wait([leash])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
