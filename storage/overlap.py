"""Work that goes on beside other work: the next piece is read and the last one written while one is scored.

Owns the order of things and how many may wait, which bounds memory. Knows nothing about what is read or written.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


@contextmanager
def read_ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Yields the items, each made in a thread while the one before it is in use.

    An error is raised where its item would have come. No more items are made once the block is left.
    """
    end = object()

    def ahead(reader: ThreadPoolExecutor) -> Iterator[T]:
        coming: Future[Any] = reader.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = reader.submit(next, items, end)
            yield item

    with ThreadPoolExecutor(1, "read-ahead") as reader:
        yield ahead(reader)


@contextmanager
def write_behind(write: Callable[P, object]) -> Iterator[Callable[P, None]]:
    """Yields a function that has a thread call `write`, in order, and itself waits for the call before last only.

    An error of `write` is raised by the next call, or where the block is left. When it has been left, no call is
    running and all of them were made, unless the block or one of them raised.
    """
    running: Future[object] | None = None

    def behind(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal running
        if running:
            running.result()
        running = writer.submit(write, *args, **kwargs)

    with ThreadPoolExecutor(1, "write-behind") as writer:
        yield behind
        if running:
            running.result()
