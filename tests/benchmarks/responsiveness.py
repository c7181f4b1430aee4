"""How a Prefect server bears a classify run of 200 task runs: with its default settings, and with those of server.env.

    python tests/benchmarks/responsiveness.py [--whole-rows] [--database-url URL]

Each way has a server of its own, with an empty database. Measured are: how long an empty flow takes on the idle server,
in the middle of the run and right after it; how long after the run the server knows of all task runs; and the memory of
server and client when half was done and at the end. Rows are scored by their first token unless told otherwise, so that
task runs come as fast as they can.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attnlstm.process import num_cores
from findings import Findings, markdown
from workloads import Workload, checkpoint

MIB = 1 << 20
REPOSITORY = Path(__file__).resolve().parents[2]
SERVER_ENV = REPOSITORY / "deployments" / "server.env"
NUM_TASKS = 200
ROW_BYTES = 512
_SAMPLE_SECONDS = 0.5
_START_SECONDS = 180
_DRAIN_SECONDS = 300


@dataclass
class Watched:
    """A process's resident memory over time, in bytes. half: which sample was taken when half was done."""

    pid: int
    samples: list[int] = field(default_factory=list)
    half: int = 0

    def sample(self) -> None:
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            if pages:  # none of a process that has ended
                self.samples.append(pages * os.sysconf("SC_PAGE_SIZE"))

    def describe(self) -> str:
        """When half was done, and at the end, in MiB."""
        return f"{self.samples[self.half] / MIB:,.0f} to {self.samples[-1] / MIB:,.0f}"


@dataclass(frozen=True)
class Measured:
    """Seconds, and bytes of memory. next_*: of an empty flow, before the run, in its middle, and right after it."""

    run: float
    next_before: float
    next_within: float
    next_after: float
    recorded_after: float
    server: Watched
    client: Watched


def measure_responsiveness(folder: Path, *, whole_rows: bool, database_url: str | None) -> Findings:
    source = _source(folder)
    weights = checkpoint(Workload("short", 1), folder)
    ways = {"default settings": {}, "server.env": read_settings(SERVER_ENV)}
    if database_url:
        ways["server.env, Postgres"] = {
            **ways["server.env"],
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database_url,
        }
    rows, figures = [], {}
    for number, (way, settings) in enumerate(ways.items()):
        home = folder / f"server-{number}-{time.time_ns()}"
        words = ["classify", str(source), str(home / "output"), "--checkpoint", str(weights)]
        words += [] if whole_rows else ["--max-tokens", "1"]
        found = _measure(home, settings, words)
        figures[way] = asdict(found)
        rows.append(
            [
                way,
                f"{found.run:.1f}",
                f"{found.next_before:.1f}",
                f"{found.next_within:.1f}",
                f"{found.next_after:.1f}",
                f"{found.recorded_after:.1f}",
                found.server.describe(),
                found.client.describe(),
            ]
        )
    header = ["", "run, s", "next flow before", "within", "after", "all recorded after", "server, MiB", "client, MiB"]
    notes = ["The next flow is empty; its seconds are from calling it to its end."]
    return Findings(f"A classify run of {NUM_TASKS} task runs", header, rows, notes, figures)


def read_settings(path: Path) -> dict[str, str]:
    """The variables of a file of NAME=value lines."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def _source(folder: Path) -> Path:
    """So many files of equal size that each is a task run."""
    place = folder / "source"
    if not place.exists():
        unfinished = folder / "source.unfinished"
        unfinished.mkdir(parents=True, exist_ok=True)
        num_rows = MIB // ROW_BYTES
        random = np.random.default_rng(17)
        offsets = pa.py_buffer(np.arange(0, MIB + 1, ROW_BYTES, dtype=np.int32))
        for number in range(NUM_TASKS):
            tokens = pa.py_buffer(random.integers(0, 256, MIB, dtype=np.uint8))
            column = pa.Array.from_buffers(pa.binary(), num_rows, [None, offsets, tokens])
            table = pa.table({"tokens": column})
            options = {"use_dictionary": False, "compression": "none", "write_statistics": False}
            pq.write_table(table, unfinished / f"part-{number:04d}.parquet", **options)
        unfinished.rename(place)
    return place


def _measure(home: Path, settings: dict[str, str], words: list[str]) -> Measured:
    with _server(home, settings) as (url, server):
        environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(home)}
        with _Probe(environment) as probe, httpx.Client(base_url=url, timeout=60) as api:
            probe.seconds()
            before = probe.seconds()
            began = time.perf_counter()
            command = [str(Path(sys.executable).with_name("attnlstm")), *words]
            with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as run:
                client = Watched(run.pid)
                with _sampling(server, client):
                    _wait(lambda: _num_recorded(api) >= NUM_TASKS // 2 or run.poll() is not None)
                    for process in (server, client):
                        process.half = len(process.samples) - 1
                    within = probe.seconds()
                    if run.wait():
                        raise RuntimeError(f"{' '.join(command)} failed")
                    ended = time.perf_counter()
                    after = probe.seconds()
                    _wait(lambda: _num_recorded(api) >= NUM_TASKS)
                    recorded = time.perf_counter()
                    probe.seconds()
            num_task_runs = _num_recorded(api)
            assert num_task_runs == NUM_TASKS, f"the source was cut into {num_task_runs} task runs"
    return Measured(ended - began, before, within, after, recorded - ended, server, client)


@contextlib.contextmanager
def _server(home: Path, settings: dict[str, str]) -> Iterator[tuple[str, Watched]]:
    home.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with open(home / "server.log", "wb") as log:
        environment = {**os.environ, **settings, "PREFECT_HOME": str(home)}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/api"
    try:
        _wait(lambda: _answers(url), _START_SECONDS)
        yield url, Watched(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


class _Probe:
    """A process with everything imported that runs an empty flow when it is asked to."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, "-c", _PROBE]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=environment, **pipes)

    def __enter__(self) -> "_Probe":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def seconds(self) -> float:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


_PROBE = """
import sys, time
from prefect import flow

@flow
def empty():
    pass

for _ in sys.stdin:
    began = time.perf_counter()
    empty()
    print(time.perf_counter() - began, flush=True)
"""


@contextlib.contextmanager
def _sampling(*processes: Watched) -> Iterator[None]:
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            for process in processes:
                process.sample()

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _num_recorded(api: httpx.Client) -> int:
    """Task runs that the server knows to be completed."""
    asked = {"task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    return int(api.post("task_runs/count", json=asked).raise_for_status().json())


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=5).is_success
    return False


def _wait(condition: Callable[[], bool], seconds: float = _DRAIN_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing changed for {seconds:.0f} s")
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole-rows", action="store_true", help="score rows whole: a second of work for a task run")
    parser.add_argument("--database-url", metavar="URL", help="an empty Postgres database, to measure it as well")
    parser.add_argument("--folder", type=Path, default=Path("bench/responsiveness"), help="for servers and outputs")
    arguments = parser.parse_args()
    os.environ.update(PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="WARNING", PREFECT_SERVER_ANALYTICS_ENABLED="false")
    os.environ.update(DO_NOT_TRACK="1", OMP_NUM_THREADS=str(num_cores()))
    found = measure_responsiveness(
        arguments.folder.absolute(), whole_rows=arguments.whole_rows, database_url=arguments.database_url
    )
    record = found.record()
    (arguments.folder / "responsiveness.json").write_text(json.dumps(record, indent=1) + "\n")
    print(markdown(record))


if __name__ == "__main__":
    main()
