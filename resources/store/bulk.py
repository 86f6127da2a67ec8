"""Copying many objects with threads: where a folder takes part, or two services do."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from resources.errors import MissingKey
from resources.store.store import Missing


def copy_in_threads(
    target: Any, source: Any, pairs: Iterator[tuple[str, str]], parallel: int, copied: Callable[[], None]
) -> list[Missing]:
    """`target.copy_from(source, …)` for every pair. The first error other than MissingKey, or an interrupt, stops the rest."""
    lock = threading.Lock()
    stop = threading.Event()
    gone: list[Missing] = []

    def work() -> None:
        while not stop.is_set():
            with lock:
                pair = next(pairs, None)
            if pair is None:
                return
            try:
                target.copy_from(source, *pair)
            except MissingKey:
                with lock:
                    gone.append(Missing(*pair))
                continue
            with lock:
                copied()

    with ThreadPoolExecutor(parallel) as pool:
        try:
            workers = [pool.submit(work) for _ in range(parallel)]
            wait(workers, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for worker in workers:
        worker.result()
    return gone
