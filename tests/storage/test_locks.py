"""One run at a time: a second one is refused, and a killed one leaves nothing in the way."""

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from storage.errors import OutputError
from storage.locations import Location
from storage.locks import Hold, only_run

HOLD = """
import sys, time
from storage.locations import Location
from storage.locks import only_run
with only_run(Location.parse(sys.argv[1]), "first"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock on tmp_path/out."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_second_run_is_told_who_holds_the_output_and_a_killed_holder_lets_go(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    place = Location.parse(tmp_path / "out")
    with pytest.raises(OutputError) as refused, only_run(place, "second"):
        pass
    assert re.fullmatch(
        rf"Another run is writing to {place}: run first, process {holder.pid} on \S+, since 20\S+\. "
        r"Wait until it ends, or write to another folder\.",
        str(refused.value),
    )
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with only_run(place, "second"):
        pass


@pytest.fixture(params=["disk", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An output on a local disk, and one in an object store."""
    return Location.parse(request.getfixturevalue("s3")("out") if request.param == "store" else tmp_path / "out")


def test_run_of_the_same_process_is_refused_too_until_the_first_has_ended(place: Location) -> None:
    with suppress(RuntimeError), only_run(place, "first"):
        with pytest.raises(OutputError, match="run first, process"), only_run(place, "second"):
            pass
        raise RuntimeError("stop")
    with only_run(place, "second"):
        pass


@pytest.mark.parametrize("other", ["", "date=2026-11-01", "date=2026-11-01/part-0.parquet"])
def test_run_is_refused_what_another_holds_and_what_is_within_or_around_it(place: Location, other: str) -> None:
    with (
        only_run(place, "first", scope="date=2026-11-01"),
        pytest.raises(OutputError, match="run first"),
        only_run(place, "second", scope=other),
    ):
        pass


def test_parts_and_outputs_that_do_not_overlap_are_held_side_by_side(place: Location) -> None:
    with (
        only_run(place, "first", scope="date=2026-11-01"),
        only_run(place, "second", scope="date=2026-11-01b"),
        only_run(place / "another", "third"),
    ):
        pass
    with only_run(place, "fourth"):
        pass


def test_holder_that_has_not_said_its_name_still_holds(tmp_path: Path) -> None:
    place = Location.parse(tmp_path / "out")
    with only_run(place, "first"):
        (said,) = (tmp_path / "out/.locks").glob("*.json")
        for damaged in ("", "{}", "[]"):
            said.write_text(damaged)
            with pytest.raises(OutputError, match="it has not said who it is"), only_run(place, "second"):
                pass


def test_nothing_is_left_of_a_run_that_ended_or_was_killed(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    place = Location.parse(tmp_path / "out")
    holder.kill()
    holder.wait()
    with only_run(place, "second", scope="date=2026-11-01"):
        pass
    assert [path.name for path in (tmp_path / "out/.locks").iterdir()] in ([".all"], [])


# In an object store. Time stamps there are in whole seconds, so a lease can't be shorter than a few.
SHORT = {"live_seconds": 3.0, "renew_seconds": 0.3}

HOLD_SHORT = HOLD.replace('"first"', '"first", live_seconds=3, renew_seconds=0.3')


@pytest.fixture
def store(s3: Callable[[str], str]) -> Location:
    return Location.parse(s3("out"))


def leases(store: Location) -> list[str]:
    return [lease.path for lease in (store / ".leases").files()]


def test_second_run_in_a_store_is_told_who_holds_the_output_until_a_killed_holder_runs_out(
    s3: Callable[[str], str], store: Location
) -> None:
    command = [sys.executable, "-c", HOLD_SHORT, s3("out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            time.sleep(3.5)  # renewed, it outlives the time that a lease has
            with pytest.raises(OutputError) as refused, only_run(store, "second", **SHORT):
                pass
        finally:
            holder.kill()
    assert re.fullmatch(
        rf"Another run is writing to {store}: run first, process {holder.pid} on \S+, since 20\S+, last "
        r"sign of life [012] s ago\. Wait until it ends, or write to another folder\. "
        r"If it was killed, its hold ends 3 s after that\.",
        str(refused.value),
    )
    with pytest.raises(OutputError, match="run first"), only_run(store, "second", **SHORT):
        pass
    assert len(leases(store)) == 1, "a run that was refused has left its lease"
    time.sleep(4)
    with only_run(store, "second", **SHORT) as hold:
        assert hold.lease is not None
        assert leases(store) == [hold.lease.path]
    assert leases(store) == []


def test_runs_that_start_together_in_a_store_never_both_go_on(store: Location) -> None:
    together = threading.Barrier(4)
    inside: list[str] = []

    def start(name: str) -> None:
        together.wait()
        with suppress(OutputError), only_run(store, name):
            inside.append(name)
            time.sleep(0.5)
            inside.append(name)

    for _ in range(3):
        threads = [threading.Thread(target=start, args=(f"run {number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert inside[::2] == inside[1::2], "a run began while another one was at work"


def test_run_whose_lease_was_taken_away_stops(store: Location) -> None:
    with only_run(store, "first", **SHORT) as hold:
        hold.check()
        assert hold.lease is not None
        hold.lease.delete()
        with pytest.raises(
            OutputError, match=rf"^This run has lost its hold on {store}: .* Run the same command again"
        ):
            hold.check()
        time.sleep(1)
        assert leases(store) == [], "it was written again"


def test_run_that_could_not_renew_for_long_gives_up_its_lease(store: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    with only_run(store, "first", **SHORT) as hold:
        with monkeypatch.context() as away:
            away.setattr(Location, "write_bytes", fail_to_write)
            time.sleep(2.5)
            hold.check()  # nobody has taken the output yet
        time.sleep(1.5)
        with pytest.raises(OutputError, match="lost its hold"):
            hold.check()


def test_run_whose_store_was_away_for_a_moment_keeps_its_lease(
    store: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    with only_run(store, "first", **SHORT) as hold:
        with monkeypatch.context() as away:
            away.setattr(Location, "write_bytes", fail_to_write)
            time.sleep(0.8)
        time.sleep(2.5)
        hold.check()
        with pytest.raises(OutputError, match="run first"), only_run(store, "second", **SHORT):
            pass


def fail_to_write(self: Location, content: bytes) -> None:
    raise OSError("AWS Error NETWORK_CONNECTION during PutObject operation")


def test_hold_on_a_local_disk_is_lost_to_other_processes_when_the_run_ends(tmp_path: Path) -> None:
    place = Location.parse(tmp_path / "out")
    with only_run(place, "first") as hold:
        travelled: Hold = pickle.loads(pickle.dumps(hold))
        travelled.check()
    with pytest.raises(OutputError, match="lost its hold"):
        travelled.check()
