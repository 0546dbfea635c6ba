"""Parts of one job on several threads, each with its share of those of torch: what is small does not wait for all."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def workers(n_parts: int) -> int:
    """How many parts `side_by_side` works on at a time: no more than torch has threads; 1 where they are not shared."""
    return max(1, min(n_parts, torch.get_num_threads())) if _thread_by_thread() else 1


def side_by_side(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """work(part) of every part, in order; torch's number of threads is as it was afterwards.

    work runs in threads of its own: gradient mode and other settings of the calling thread do not hold there.
    """
    count, threads = workers(len(parts)), torch.get_num_threads()
    if count < 2:
        return [work(part) for part in parts]
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads // count,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(threads)  # a thread sets its own number, and that of threads to come


@functools.cache
def _thread_by_thread() -> bool:
    """Whether the number of threads is a thread's own, as under OpenMP."""
    return "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()
