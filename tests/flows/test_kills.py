"""Scoring that is stopped anywhere and started again: the output is the one of an undisturbed run.

ATTNLSTM_KILL_ROUNDS sets how often it is killed; `make kills` runs the long form.
"""

import contextlib
import errno
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from attnlstm.checkpoint import to_files
from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from flows.operations.score import ScoredShard, ScoringJob, score_bundle
from storage.input.columns import Columns
from storage.input.shards import ShardLimits, plan_shards
from storage.input.sources import find_source
from storage.locations import TEMPORARY_SUFFIX, Location
from storage.output.layout import Output, OutputSettings
from storage.output.plan import OutputPlan, Pending
from storage.registry.cards import Card
from storage.registry.checkpoints import Registry

ROUNDS = int(os.environ.get("ATTNLSTM_KILL_ROUNDS", "15"))
SETTINGS = OutputSettings(columns=Columns(keep=("note",)), limits=ShardLimits(rows=70), chunk_bytes=512)

Files = dict[str, bytes]


class Run:
    """One source, one checkpoint and one output, scored as often as a test likes."""

    def __init__(self, folder: Path, output: Path) -> None:
        stored = Registry.open(str(folder / "registry")).load("champion")
        self.source = find_source(str(folder / "source"))
        self.output = Output(Location.parse(output), SETTINGS)
        self.job = ScoringJob.of(stored, self.source.root, self.output, device="cpu", engine="torch", threads=2)

    def plan(self) -> OutputPlan:
        cut = plan_shards(self.source, SETTINGS.columns, SETTINGS.limits)
        return OutputPlan(self.source, self.output, cut.shards, cut.unreadable)

    def pending(self) -> tuple[Pending, ...]:
        return self.plan().pending(self.job.checkpoint, "missing")

    def score(self) -> list[str]:
        """Score what is missing. Gives the reasons of the shards that could not be scored."""
        results = score_bundle(self.job, self.pending())
        return [result.reason for result in results if not isinstance(result, ScoredShard)]

    def files(self) -> Files:
        root = Path(self.output.root.path)
        whole = (path for path in root.rglob("*.parquet") if not path.name.endswith(TEMPORARY_SUFFIX))
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(whole)}


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
    network = AttentionLSTM(ModelConfig(classes=("x", "y", "z")))
    registry = Registry.open(str(folder / "registry"))
    registry.promote(registry.publish(to_files(network), Card(), "").version, "for the test")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Files:
    run = Run(folder, folder / "undisturbed")
    run.score()
    return run.files()


@pytest.mark.slow
def test_output_is_the_undisturbed_one_after_kills_at_random_moments(
    folder: Path, undisturbed: Files, tmp_path: Path
) -> None:
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(
        ["flows.operations.score", "attnlstm.checkpoint", "attnlstm.engines.torch_engine"]
    )
    chance = random.Random(ROUNDS)
    kills = outputs = 0
    _score_in_child(forkserver, Run(folder, tmp_path / "first"))  # starts the server that the others come from
    longest = _seconds_of(lambda: _score_in_child(forkserver, Run(folder, tmp_path / "timed")))
    while kills < ROUNDS:
        run = Run(folder, tmp_path / f"output-{outputs}")
        outputs += 1
        while pending := run.pending():
            child = forkserver.Process(target=score_bundle, args=(run.job, pending))
            child.start()
            child.join(chance.uniform(0, longest))
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
                kills += 1
            child.join()
            committed = run.files()
            assert all(undisturbed[name] == content for name, content in committed.items()), "a partial or wrong file"
        assert run.files() == undisturbed
    print(f"{kills} kills over {outputs} outputs")


def test_output_is_the_undisturbed_one_after_a_fault_at_each_step_of_the_commit(
    folder: Path, undisturbed: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step, (owner, name) in enumerate(_commit_steps()):
        calls = _count_calls(owner, name, folder, tmp_path / f"count-{step}", monkeypatch)
        assert calls, f"{name} is not a step of the commit any more"
        for call in sorted({1, 2, calls // 2, calls}):
            run = Run(folder, tmp_path / f"{step}-{call}")
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, _failing_at(call, getattr(owner, name)))
                with contextlib.suppress(OSError):  # where a footer is read, it is told as a damaged file instead
                    run.score()
            committed = run.files()
            assert all(undisturbed[file] == content for file, content in committed.items())
            run.score()
            assert run.files() == undisturbed


def test_a_full_disk_fails_the_run_and_leaves_whole_files_only(
    folder: Path, undisturbed: Files, small_disk: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(_free_bytes(small_disk) - 40_000))
    run = Run(folder, small_disk / "output")
    reasons = run.score()
    assert any(os.strerror(errno.ENOSPC) in reason for reason in reasons), reasons
    committed = run.files()
    assert committed.items() <= undisturbed.items()
    assert not list(small_disk.rglob(f"*{TEMPORARY_SUFFIX}"))
    ballast.unlink()
    run.score()
    assert run.files() == undisturbed


def test_a_source_file_that_vanishes_midway_fails_alone(folder: Path, undisturbed: Files, tmp_path: Path) -> None:
    run = Run(folder, tmp_path / "output")
    pending = run.pending()
    vanishing = folder / "source/date=2026-11-02/b.parquet"
    content = vanishing.read_bytes()
    vanishing.unlink()
    try:
        results = score_bundle(run.job, pending)
    finally:
        vanishing.write_bytes(content)
    failures = [result for result in results if not isinstance(result, ScoredShard)]
    assert [(failure.name, failure.reason) for failure in failures] == [
        ("date=2026-11-02/b.parquet", "vanished while the run was on")
    ]
    assert len(run.files()) == len(undisturbed) - 2
    run.score()
    assert run.files() == undisturbed


def test_a_read_only_output_is_an_error_and_not_a_loss(folder: Path, small_disk: Path) -> None:
    output = small_disk / "output"
    output.mkdir()
    assert os.system(f"mount -o remount,ro {small_disk}") == 0
    try:
        reasons = Run(folder, output).score()
    finally:
        os.system(f"mount -o remount,rw {small_disk}")
    assert len(reasons) == len(Run(folder, output).pending())
    assert all(os.strerror(errno.EROFS) in reason for reason in reasons), reasons


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {disk} 2>/dev/null"):
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield disk
    finally:
        os.system(f"umount {disk}")


def _commit_steps() -> list[tuple[object, str]]:
    return [
        (pq.ParquetWriter, "write_table"),
        (pq.ParquetWriter, "close"),
        (pq, "read_metadata"),
        (os, "fsync"),
        (os, "replace"),
    ]


def _count_calls(owner: object, name: str, folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    calls = 0
    real = getattr(owner, name)

    def counted(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        return real(*args, **options)

    run = Run(folder, output)
    pending = run.pending()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counted)
        score_bundle(run.job, pending)
    return calls


def _failing_at(call: int, real: Callable[..., object]) -> Callable[..., object]:
    calls = 0

    def faulty(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError("injected")
        return real(*args, **options)

    return faulty


def _score_in_child(context: multiprocessing.context.ForkServerContext, run: Run) -> None:
    child = context.Process(target=score_bundle, args=(run.job, run.pending()))
    child.start()
    child.join()
    assert child.exitcode == 0


def _seconds_of(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
