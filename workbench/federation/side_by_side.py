"""Pieces of work on all cores of a machine: one thread a core, and one core a piece.

PyTorch's kernels leave Python's lock while they compute, so that threads are enough. A piece is computed by kernels of
one thread, whichever core takes it and whatever runs beside it: its result depends neither on the number of cores nor
on the other pieces. Threads that compute one piece each also never wait for each other, which the threads inside a
kernel do many times a step; where a machine is busy with other work, that waiting costs more than the computing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")

_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}
"""By process and number of workers: a forked process inherits this table, but no thread."""
_LOCK = threading.Lock()


def side_by_side(work: Callable[[int, T], None], pieces: Iterable[T]) -> None:
    """Call ``work(worker, piece)`` for every piece, on as many workers as this thread may use cores for its kernels.

    Workers count from 0 and take the pieces in order, each when it is done with its last one. The first exception ends
    the work, when the pieces begun are done, and is raised.
    """
    count = torch.get_num_threads()
    if count == 1:
        for piece in pieces:
            work(0, piece)
        return
    pool, left = _pool(count), _Shared(pieces)

    def worker(number: int) -> None:
        try:
            for piece in left:
                work(number, piece)
        except BaseException:
            left.stop()
            raise

    tasks = [pool.submit(worker, number) for number in range(count)]
    try:
        for task in tasks:
            task.result()
    finally:
        left.stop()
        wait(tasks)


def this_thread() -> int:
    """A key for what each thread keeps for itself."""
    return threading.get_ident()


class _Shared(Iterator[T]):
    """An iterator for several threads, which can be ended early."""

    def __init__(self, pieces: Iterable[T]) -> None:
        self._pieces, self._lock = iter(pieces), threading.Lock()

    def __next__(self) -> T:
        with self._lock:
            return next(self._pieces)

    def stop(self) -> None:
        with self._lock:
            self._pieces = iter(())


def _pool(count: int) -> ThreadPoolExecutor:
    """Threads whose kernels use one core; kept, because kernel libraries keep memory for each thread they have seen."""
    with _LOCK:
        key = (os.getpid(), count)
        if key not in _POOLS:
            pool, ready = ThreadPoolExecutor(count, thread_name_prefix="clients"), threading.Barrier(count + 1)

            def settle() -> None:
                torch.set_num_threads(1)
                torch.get_num_threads()  # a thread's first question would later set it to the last number set anywhere
                ready.wait()

            for _ in range(count):
                pool.submit(settle)
            ready.wait()
            torch.set_num_threads(count)  # the last call sets the number for threads that are yet to come, too
            _POOLS[key] = pool
        return _POOLS[key]
