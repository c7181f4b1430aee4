"""Work that is killed anywhere, or meets any fault, and is started again: in the end all is as if nothing had been.

ATTNLSTM_KILL_ROUNDS and ATTNLSTM_RETRAIN_KILLS set how often scoring and training are killed; `make kills` and
`make retrainkills` run the long forms. What a whole run does when it is stopped is in test_stops.py.
"""

import errno
import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from attnlstm.checkpoint import from_files
from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from builders import Files, make_champion, scored_files
from flows.operations.promote import decide_promotion
from flows.operations.score import ScoredShard, ScoringJob, score_bundle
from flows.operations.train import Listener, TrainingRequest, train_checkpoint
from storage.input.columns import Columns
from storage.input.shards import ShardLimits
from storage.labelled.source import LabelledSource
from storage.locations import TEMPORARY_SUFFIX, Location
from storage.output.layout import Output, OutputSettings
from storage.output.plan import Pending, plan_output
from storage.registry.checkpoints import Registry

SETTINGS = OutputSettings(columns=Columns(keep=("note",)), limits=ShardLimits(rows=70), chunk_bytes=512)
EPOCHS = 3


class Run:
    """One source, one checkpoint and one output, scored as often as a test likes."""

    def __init__(self, folder: Path, output: Path) -> None:
        self.folder, self.place = folder, output
        self.output = Output(Location.parse(output), SETTINGS)
        self.source = str(folder / "source")
        stored = Registry.open(str(folder / "registry")).load("champion")
        self.job = ScoringJob.of(
            stored, Location.parse(self.source), self.output, device="cpu", engine="torch", threads=2
        )

    def pending(self) -> tuple[Pending, ...]:
        self.output.prepare(self.source)
        return plan_output(self.source, self.output).pending(self.job.checkpoint, "missing")

    def score(self, pending: tuple[Pending, ...]) -> list[str]:
        """Score these. Gives the reasons of the shards that could not be scored."""
        return [each.reason for each in score_bundle(self.job, pending) if not isinstance(each, ScoredShard)]

    def files(self) -> Files:
        return scored_files(self.place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files: one cut into shards, one with rows that can't be scored, one without rows."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "source/date=2026-11-01").mkdir(parents=True)
    (folder / "source/date=2026-11-02").mkdir(parents=True)
    chance = random.Random(5)
    rows: list[bytes | None] = [chance.randbytes(chance.randint(1, 60)) for _ in range(331)]
    rows[7], rows[11] = None, b""
    table = pa.table({"id": range(331), "tokens": pa.array(rows, pa.binary()), "note": [f"n{i}" for i in range(331)]})
    pq.write_table(table, folder / "source/date=2026-11-01/a.parquet", row_group_size=37)
    pq.write_table(table.slice(100, 41), folder / "source/date=2026-11-02/b.parquet")
    pq.write_table(table.slice(0, 0), folder / "source/date=2026-11-02/none.parquet")
    torch.manual_seed(3)
    make_champion(folder / "registry", AttentionLSTM(ModelConfig(classes=("x", "y", "z"))))
    return folder


# --- faults

STEPS: dict[str, object] = {  # of a commit, by the names of the functions
    "write_table": pq.ParquetWriter,
    "close": pq.ParquetWriter,
    "read_metadata": pq,
    "fsync": os,
    "replace": os,
}


@contextmanager
def counting_steps(fail: str = "", at: int = 0) -> Iterator[Counter[str]]:
    """Counts the calls of each step. One call of one step fails, if it is named."""
    calls: Counter[str] = Counter()

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        numbers = itertools.count(1)

        def call(*args: Any, **options: Any) -> Any:
            calls[name] = number = next(numbers)
            if (name, number) == (fail, at):
                raise OSError("injected")
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name, owner in STEPS.items():
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
        yield calls


@dataclass
class Undisturbed:
    """The files of a run that nothing disturbs, and how often it takes each step of a commit."""

    files: Files
    calls: Counter[str]


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Undisturbed:
    run = Run(folder, folder / "undisturbed")
    pending = run.pending()
    with counting_steps() as calls:
        assert run.score(pending) == []
    assert calls.keys() == STEPS.keys(), "a step of the commit is none any more"
    return Undisturbed(run.files(), calls)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where mounting one is permitted; else a folder."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.system(f"mount -t tmpfs -o size=1m tmpfs {disk} 2>/dev/null") == 0
    yield disk
    if mounted:
        os.system(f"umount {disk}")


def fault(step: str, moment: float) -> Callable[..., AbstractContextManager[Any]]:
    """moment: the first or second call, or the last or the one in the middle of them all."""

    def disturb(run: Run, undisturbed: Undisturbed) -> AbstractContextManager[Any]:
        at = int(moment) if moment >= 1 else round(undisturbed.calls[step] * (0.5 if moment else 1))
        return counting_steps(step, at)

    return disturb


def needs_disk(run: Run) -> Path:
    if not os.path.ismount(run.place.parent):
        pytest.skip("mounting a small file system is not permitted here")
    return run.place.parent


@contextmanager
def full_disk(run: Run, undisturbed: Undisturbed) -> Iterator[None]:
    disk = needs_disk(run)
    status = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(status.f_bavail * status.f_frsize - 40_000))
    yield
    (disk / "ballast").unlink()


@contextmanager
def read_only_disk(run: Run, undisturbed: Undisturbed) -> Iterator[None]:
    disk = needs_disk(run)
    assert os.system(f"mount -o remount,ro {disk}") == 0
    yield
    os.system(f"mount -o remount,rw {disk}")
    assert run.files() == {}


@contextmanager
def vanished_file(run: Run, undisturbed: Undisturbed) -> Iterator[None]:
    vanishing = run.folder / "source/date=2026-11-02/b.parquet"
    content = vanishing.read_bytes()
    vanishing.unlink()
    yield
    vanishing.write_bytes(content)
    assert len(run.files()) == len(undisturbed.files) - 2


@pytest.mark.parametrize(
    ("disturb", "reason"),
    [
        *(
            pytest.param(fault(step, moment), "injected", id=f"{step} {moment}")
            for step in STEPS
            for moment in (1, 2, 0.5, 0)
        ),
        pytest.param(full_disk, os.strerror(errno.ENOSPC), id="full disk"),
        pytest.param(read_only_disk, os.strerror(errno.EROFS), id="read-only disk"),
        pytest.param(vanished_file, "vanished while the run was on", id="vanished file"),
    ],
)
def test_a_fault_fails_its_shards_alone_and_the_next_run_ends_as_an_undisturbed_one(
    disturb: Callable[..., AbstractContextManager[None]],
    reason: str,
    folder: Path,
    undisturbed: Undisturbed,
    disk: Path,
) -> None:
    run = Run(folder, disk / "output")
    pending = run.pending()
    with disturb(run, undisturbed):
        reasons = run.score(pending)
    assert reasons, "nothing failed"
    assert [each for each in reasons if reason not in each] == []
    assert run.files().items() <= undisturbed.files.items(), "a partial, wrong or temporary file"
    assert run.score(run.pending()) == []
    assert run.files() == undisturbed.files


# --- kills


def score(source: Path, place: Path, number: int) -> None:
    run = Run(source, place)
    run.score(run.pending())


def retrain(source: Path, place: Path, number: int) -> None:
    """What the tasks of a retrain run do. number: the seed."""
    labelled, opened = LabelledSource(str(source)), Registry.open(str(place))
    overrides = {"epochs": EPOCHS, "threads": 1, "seed": number, "patience": EPOCHS}
    request = TrainingRequest(labelled=labelled, preset="reference", overrides=overrides)
    decide_promotion(labelled, opened, train_checkpoint(request, opened, Listener()).version)


def whole_files(place: Path) -> Files:
    return {name: content for name, content in scored_files(place).items() if not name.endswith(TEMPORARY_SUFFIX)}


def whole_registry(place: Path) -> Files:
    """The weights of each version, and of the champion. Raises if one can't be loaded."""
    registry = Registry.open(str(place))
    names = [*registry.versions(), *(["champion"] if registry.alias() else [])]
    stored = {name: registry.load(name) for name in names}
    for name, each in stored.items():
        from_files(each.files, where=name)
    # Versions are named by the moment too, so that only their weights are alike.
    return {each.digest if name != "champion" else name: each.digest.encode() for name, each in stored.items()}


@dataclass(frozen=True)
class Work:
    """Something to do in a process of its own, and what it has left so far."""

    do: Callable[[Path, Path, int], None]
    left: Callable[[Path], Files]
    rounds: int


SCORING = Work(score, whole_files, int(os.environ.get("ATTNLSTM_KILL_ROUNDS", "15")))
TRAINING = Work(retrain, whole_registry, int(os.environ.get("ATTNLSTM_RETRAIN_KILLS", "4")))


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Where processes come from that have imported everything."""
    forkserver = multiprocessing.get_context("forkserver")
    kernels = ["attnlstm.engines.fused_cpu.kernel", "attnlstm.training.fused.kernel"]
    forkserver.set_forkserver_preload(["pytest", "flows.operations.promote", "flows.operations.train", *kernels])
    return forkserver


@pytest.mark.slow
@pytest.mark.parametrize("work", [SCORING, TRAINING], ids=["scoring", "training"])
def test_all_is_as_if_nothing_had_been_after_kills_at_random_moments(
    work: Work, folder: Path, dataset: Path, processes: ForkServerContext, tmp_path: Path
) -> None:
    source = folder if work is SCORING else dataset
    chance = random.Random(work.rounds)
    undisturbed: list[Files] = []
    for number in (0, 1):
        began = time.perf_counter()
        child = processes.Process(target=work.do, args=(source, tmp_path / f"undisturbed-{number}", number))
        child.start()
        child.join()
        assert child.exitcode == 0
        longest = time.perf_counter() - began  # of the second one, since the first starts where both come from
        undisturbed.append(work.left(tmp_path / f"undisturbed-{number}"))
    kills = places = 0
    while kills < work.rounds:
        number, place = places % 2, tmp_path / f"disturbed-{places}"
        places += 1
        while True:
            child = processes.Process(target=work.do, args=(source, place, number))
            child.start()
            child.join(chance.uniform(0, longest))
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
                kills += 1
            child.join()
            assert work.left(place).items() <= undisturbed[number].items(), "something partial or wrong"
            if child.exitcode == 0:
                break
        assert work.left(place) == undisturbed[number]
        assert list(place.glob("training/*/snapshot")) == []
    print(f"{kills} kills over {places} places")


@pytest.mark.slow
def test_retrainings_at_once_are_all_judged_and_all_remembered(
    processes: ForkServerContext, dataset: Path, tmp_path: Path
) -> None:
    place = tmp_path / "registry"
    children = [processes.Process(target=retrain, args=(dataset, place, seed)) for seed in (0, 1, 2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    whole_registry(place)
    registry = Registry.open(str(place))
    assert len(registry.versions()) == 3
    # One that was overtaken while it was judged has failed, and is judged when it is run again.
    for seed, child in enumerate(children):
        if child.exitcode:
            retrain(dataset, place, seed)
    alias = registry.alias()
    assert alias is not None
    champions = {alias.version, *(each.version for each in alias.before)}
    outcomes = {version: registry.card(version).judgement.outcome for version in registry.versions()}
    assert {version for version, outcome in outcomes.items() if outcome == "promoted"} == champions
    assert len(champions) == len(alias.before) + 1
    assert json.loads((place / "aliases/champion.json").read_text())["version"] == alias.version
