"""Reading ahead and writing behind: order, bounds, errors, and that nothing runs on."""

import threading
from collections.abc import Iterator

import pytest

from storage.overlap import read_ahead, write_behind

PATIENCE_S = 30  # for what comes at once unless something is wrong


def test_items_come_in_order() -> None:
    with read_ahead(iter(range(5))) as items:
        assert list(items) == [0, 1, 2, 3, 4]


def test_the_next_item_is_made_while_one_is_in_use_and_no_more() -> None:
    made = threading.Semaphore(0)
    count = 0

    def numbers() -> Iterator[int]:
        nonlocal count
        for count in range(1, 10):
            made.release()
            yield count

    with read_ahead(numbers()) as items:
        assert next(items) == 1
        assert made.acquire(timeout=PATIENCE_S)
        assert made.acquire(timeout=PATIENCE_S)  # the second is made though nobody asked for it
    assert count == 2


def test_an_error_comes_where_its_item_would_have() -> None:
    def two_and_a_fault() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("unreadable")

    seen: list[int] = []
    with pytest.raises(ValueError, match="unreadable"), read_ahead(two_and_a_fault()) as items:
        seen.extend(items)
    assert seen == [1, 2]


def test_calls_are_made_in_order_and_all_of_them() -> None:
    written: list[int] = []
    with write_behind(written.append) as write:
        for number in range(20):
            write(number)
    assert written == list(range(20))


def test_a_call_is_not_waited_for_but_the_one_before_is() -> None:
    go_on = threading.Event()
    written: list[int] = []

    def slow(number: int) -> None:
        assert go_on.wait(PATIENCE_S)
        written.append(number)

    with write_behind(slow) as write:
        write(1)
        assert written == []
        go_on.set()
        write(2)
        assert written[0] == 1


def test_an_error_of_the_last_call_is_raised() -> None:
    def full(number: int) -> None:
        raise OSError(f"no space for {number}")

    with pytest.raises(OSError, match="no space for 7"), write_behind(full) as write:
        write(7)


def test_an_error_stops_the_calls_after_it() -> None:
    written: list[int] = []

    def fail_at_two(number: int) -> None:
        if number == 2:
            raise OSError("no space")
        written.append(number)

    with pytest.raises(OSError, match="no space"), write_behind(fail_at_two) as write:
        list(map(write, range(10)))
    assert written == [0, 1]


def test_when_the_block_raises_its_error_comes_out_and_no_call_is_running() -> None:
    ended = threading.Event()

    def slow(number: int) -> None:
        threading.Event().wait(0.2)
        ended.set()

    with pytest.raises(KeyError), write_behind(slow) as write:
        [write(1), {}["nothing"]]
    assert ended.is_set()
