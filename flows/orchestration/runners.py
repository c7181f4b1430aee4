"""What does the work of a run: threads of this process, processes of a Ray or Dask cluster, or workers of a pool.

Owns the choice of Prefect's task runner, the cluster that is started where no address is given, what of a machine each
task may use, the one loop that submits work and waits for it, and runs that workers of a pool take. Knows nothing about
shards. Which task goes where, and again after a process has died, is left to Ray and Dask.
"""

import asyncio
import importlib.util
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.runtime import flow_run
from prefect.states import Cancelling
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.asyncutils import run_coro_as_sync

from attnlstm.engines import Device
from attnlstm.process import num_cores
from flows.orchestration.progress import RunProgress, RunStoppedError, current_progress, showing
from flows.settings import RunnerName

# By import name; all are in the extra of the runner's name.
_NEEDED = {"threads": (), "ray": ("ray", "prefect_ray"), "dask": ("distributed", "prefect_dask")}

# Nothing but task arguments and counts goes through it. Ray's least, where its default is a third of the memory.
_OBJECT_STORE_BYTES = 80 << 20

# For an answer from a cluster's address. Left to themselves, Ray takes minutes to give up, and Dask may wait for ever.
_REACH_SECONDS = 10

# How soon a run that is being stopped takes notice.
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Workers:
    """Workers that are ready. runner: Prefect's task runner, started.

    at_once: tasks at a time. limit: how many to have submitted so that it is no more than that; None if the workers
    see to it. threads: compute threads that a process should have. in_process: whether the workers are threads of
    this process, which see its memory and its context.
    """

    runner: TaskRunner[Any]
    at_once: int
    threads: int
    limit: int | None = None
    in_process: bool = False


# Those of a run which others are part of.
_shared: ContextVar[Workers | None] = ContextVar("shared_workers", default=None)


class Ending(Protocol):
    """What the loop needs of a future, which is Prefect's or Python's own."""

    def add_done_callback(self, callback: Callable[[Any], None], /) -> object: ...


Work = TypeVar("Work")
Future = TypeVar("Future", bound=Ending)


def run_all(
    waiting: deque[Work],
    submit: Callable[[Work], Future],
    on_end: Callable[[Work, Future], None],
    *,
    limit: int | None,
    progress: RunProgress,
) -> None:
    """Submit all that is waiting, from the left, and wait until it has ended.

    on_end: called in this thread with each piece of work and its future as it ends. It may clear `waiting`, so that no
    more is started. limit: how much may be submitted at a time; None if whoever does the work sees to that. If the run
    is ended meanwhile, `progress` tells whoever reports to it to stop.
    """
    running: dict[Future, Work] = {}
    ended: SimpleQueue[Future] = SimpleQueue()
    with showing(progress):
        try:
            while True:
                free = len(waiting) if limit is None else limit - len(running)
                for _ in range(min(free, len(waiting))):
                    work = waiting.popleft()
                    future = submit(work)
                    running[future] = work
                    future.add_done_callback(ended.put)
                if not running:
                    return
                progress.tick()
                # In a process of its own, a task neither reports its progress nor learns that the run is ending.
                try:
                    future = ended.get(timeout=_LOOK_SECONDS)
                except Empty:
                    pass
                else:
                    on_end(running.pop(future), future)
                progress.advance(0)
        except BaseException:
            progress.stop()
            raise


def run_on_pool(deployment: str, parameters: dict[str, Any], name: str, poll_seconds: float) -> FlowRun:
    """A run of a deployment on a worker of its pool, when it has ended; it is cancelled if the run around it stops.

    name: of this run among those that the run around it starts. To be called within `showing`.
    """
    progress = current_progress.get()
    assert progress is not None, "runs are waited for within `showing`"
    # Not to wait: it could not be told to stop.
    start = partial(run_deployment, deployment, parameters=parameters, timeout=0)
    # A retry of the run around it finds the runs that it has started; another run starts its own.
    key = f"{flow_run.id} {name}"
    run: Any = start(idempotency_key=key)  # its type allows for a coroutine, which asynchronous code would get
    if run.state.is_final() and not run.state.is_completed():  # what this retry is for
        run = start(idempotency_key=f"{key} {flow_run.run_count}")
    with get_client(sync_client=True) as client:
        try:
            while not run.state.is_final():
                progress.rest(poll_seconds)
                with suppress(httpx.HTTPError):  # the server is away, and may come back
                    run = client.read_flow_run(run.id)
        except RunStoppedError:
            client.set_flow_run_state(run.id, Cancelling(message="The backfill that it is of was stopped."))
            raise
    return cast(FlowRun, run)


def check_runner(runner: RunnerName, address: str | None) -> None:
    """Raises ValueError if there is an address for threads, or the runner's libraries are not installed."""
    if runner == "threads" and address:
        raise ValueError(
            f"--address {address} is of a cluster, and the runner is threads: add --runner ray or --runner dask, or "
            "leave the address out"
        )
    missing = [name for name in _NEEDED[runner] if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the runner {runner} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f"installed here: pip install 'attnlstm[{runner}]'"
        )


@contextmanager
def open_workers(
    runner: RunnerName, address: str | None, workers: int | None, device: Device, *, shared: bool = False
) -> Iterator[Workers]:
    """The workers of a run, until the block ends; those of the run around it, where that shares its own.

    workers: tasks at a time; None is as many as there are cores here, or places in the cluster at `address`.
    device: "cpu" leaves GPUs to others. shared: runs within the block use the same workers, which for threads would
    change nothing. The runner and the address have passed `check_runner`. Raises ConnectionError if there is no cluster
    at the address or none can be started.
    """
    around = _shared.get()
    if around is not None:
        yield around
        return
    cores = num_cores()
    kinds: dict[RunnerName, AbstractContextManager[Workers]] = {
        "threads": _threads(workers or cores),
        "ray": _ray(address, workers, device),
        "dask": _dask(address, workers),
    }
    with kinds[runner] as opened:
        token = _shared.set(opened if shared and not opened.in_process else None)
        try:
            yield opened
        finally:
            _shared.reset(token)


@contextmanager
def _threads(workers: int) -> Iterator[Workers]:
    with ThreadPoolTaskRunner[Any](max_workers=workers) as runner:
        yield Workers(runner, workers, threads=workers, in_process=True)


@contextmanager
def _ray(address: str | None, workers: int | None, device: Device) -> Iterator[Workers]:
    """One core for each task, and one GPU where the cluster has any: Ray keeps the count, and shows a task its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # Read at Ray's import. What is off is clusters of several machines: all that listens then does so on loopback.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray
    from prefect_ray.context import remote_options
    from prefect_ray.task_runners import RayTaskRunner

    options: dict[str, Any] = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {
            "address": "local",  # never one that happens to run here, which is what Ray's default would take
            "num_cpus": workers or num_cores(),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    with ExitStack() as stack:
        with _said_where("Ray", address):
            if address and address != "auto":
                _reach_ray(address)
            runner = stack.enter_context(RayTaskRunner(init_kwargs=options))
        resources: dict[str, float] = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if device != "cpu" else 0
        places = gpus or int(resources.get("CPU", 1))
        # By default Ray ends a process after each task that had a GPU; the next would load the checkpoint again.
        needs = {"num_gpus": 1, "max_calls": 0} if gpus else {}
        with remote_options(num_cpus=1, **needs):
            yield _part(runner, workers, places, threads=1)


@contextmanager
def _dask(address: str | None, workers: int | None) -> Iterator[Workers]:
    """A task for each thread of the cluster's workers; those that are started here have one thread."""
    from prefect_dask.task_runners import DaskTaskRunner

    started = {
        "n_workers": workers or num_cores(),
        "threads_per_worker": 1,
        "memory_limit": 0,  # what a task takes is bounded already (chunk_bytes), and Dask would end who takes more
        "dashboard_address": None,
        "silence_logs": logging.CRITICAL,
    }
    if not address:
        # Of processes here that die or are ended, the run's own end says what there is to say.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_kwargs=started) as runner:
        with _said_where("Dask", address):
            if address:
                run_coro_as_sync(_reach_dask(address))
            client = runner.client
        found = client.scheduler_info(n_workers=-1)["workers"].values()
        threads = [int(worker["nthreads"]) for worker in found] or [1]
        yield _part(runner, workers, sum(threads), threads=max(threads))


def _reach_ray(address: str) -> None:
    """Raises OSError or ValueError if nobody listens where Ray would look for the cluster."""
    import ray

    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname is None or place.port is None:
        raise ValueError("that is none; expected HOST:PORT, ray://HOST:PORT or auto")
    host = place.hostname
    if not place.scheme and host in ("localhost", "127.0.0.1"):
        host = ray.util.get_node_ip_address()  # Ray replaces it alike, unless it is told that there is one machine only
    try:
        socket.create_connection((host, place.port), _REACH_SECONDS).close()
    except OSError as error:
        hint = ""
        if host not in address:
            hint = ", which Ray takes it for; of a cluster on loopback, set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0"
        raise OSError(f"{error.strerror or error} ({host}:{place.port}{hint})") from error


async def _reach_dask(address: str) -> None:
    """Raises OSError or ValueError if there is no Dask scheduler at the address."""
    import distributed.comm

    dask: Any = distributed  # whose functions have no types
    options = dask.Security().get_connection_args("client")
    try:
        async with asyncio.timeout(2 * _REACH_SECONDS):
            comm = await dask.comm.connect(address, timeout=_REACH_SECONDS, **options)
    except TimeoutError as error:
        raise OSError("what listens there does not answer as a Dask scheduler does") from error
    await comm.close()


@contextmanager
def _said_where(name: str, address: str | None) -> Iterator[None]:
    """Raises ConnectionError for whatever it is that keeps a cluster from starting, or from being reached."""
    try:
        yield
    except Exception as error:  # Ray's own is no more precise
        what = f"can't be reached at {address}" if address else "did not start here"
        raise ConnectionError(f"The {name} cluster {what}: {error}") from error


def _part(runner: TaskRunner[Any], workers: int | None, places: int, *, threads: int) -> Workers:
    """Of a cluster with so many places, as many workers as were asked for."""
    if workers and workers < places:
        return Workers(runner, workers, threads, limit=workers)
    return Workers(runner, places, threads)
