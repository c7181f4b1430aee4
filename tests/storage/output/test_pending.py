"""What is still to be scored is read from the output's files alone."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from storage.input.shards import Shard, ShardLimits
from storage.input.sources import Source
from storage.locations import Location
from storage.output.layout import AttentionSaving, Output, OutputSettings
from storage.output.pending import Mode, find_pending
from storage.registry.checkpoints import CheckpointId


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(Location.parse(tmp_path / "out"), OutputSettings())


@pytest.fixture
def reasons(
    data: Path, output: Output, plan: Callable[..., tuple[Source, tuple[Shard, ...]]], checkpoint: CheckpointId
) -> Callable[..., dict[str, str]]:
    """reasons(mode): why each pending shard of the dataset is to be scored, by its name."""

    def reasons(mode: Mode = "missing", *, by: CheckpointId = checkpoint, to: Output = output) -> dict[str, str]:
        _, shards = plan(data, to)
        pending = find_pending(to, shards, by, mode)
        assert [each.shard.name for each in pending] == sorted(each.shard.name for each in pending)
        return {each.shard.name: each.reason for each in pending}

    return reasons


@pytest.fixture(autouse=True)
def three_files(put: Callable[..., Path]) -> None:
    for name in ("a", "b", "date=1/c"):
        put(f"{name}.parquet", [name.encode(), b"", None])


def test_everything_is_missing_at_first_and_nothing_afterwards(
    data: Path, output: Output, score: Callable[..., object], reasons: Callable[..., dict[str, str]]
) -> None:
    assert reasons() == dict.fromkeys(["a.parquet", "b.parquet", "date=1/c.parquet"], "missing")
    score(data, output)
    assert reasons("missing") == reasons("stale") == {}
    assert reasons("all") == dict.fromkeys(["a.parquet", "b.parquet", "date=1/c.parquet"], "asked for")


@pytest.mark.parametrize("folder", ["predictions", "attention"])
def test_shard_without_one_of_its_files_is_missing(
    folder: str, data: Path, output: Output, score: Callable[..., object], reasons: Callable[..., dict[str, str]]
) -> None:
    score(data, output)
    Path(output.root.path, folder, "b.parquet").unlink()
    assert reasons() == {"b.parquet": "missing"}


@pytest.mark.parametrize("folder", ["predictions", "attention"])
def test_damaged_output_is_missing(
    folder: str, data: Path, output: Output, score: Callable[..., object], reasons: Callable[..., dict[str, str]]
) -> None:
    score(data, output)
    path = Path(output.root.path, folder, "b.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    assert reasons() == {"b.parquet": "missing"}


def test_run_that_was_killed_between_the_two_renames_left_its_shard_missing(
    data: Path,
    output: Output,
    checkpoint: CheckpointId,
    score: Callable[..., object],
    reasons: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    score(data, output)
    challenger = CheckpointId("v2", "e" * 32)
    other = Output(Location.parse(tmp_path / "other"), output.settings)
    score(data, other, by=challenger)
    shutil.copy(other.attention("b.parquet").path, output.attention("b.parquet").path)
    assert reasons("missing", by=checkpoint) == {"b.parquet": "missing"}
    assert reasons("missing", by=challenger) == {"b.parquet": "missing"}


def test_without_attention_predictions_alone_are_the_commit(
    data: Path, tmp_path: Path, score: Callable[..., object], reasons: Callable[..., dict[str, str]]
) -> None:
    bare = Output(Location.parse(tmp_path / "bare"), OutputSettings(attention=AttentionSaving("none")))
    score(data, bare)
    assert not (tmp_path / "bare/attention").exists()
    assert reasons(to=bare) == {}


def test_changed_input_is_told(
    data: Path,
    output: Output,
    put: Callable[..., Path],
    score: Callable[..., object],
    reasons: Callable[..., dict[str, str]],
) -> None:
    score(data, output)
    put("b.parquet", [b"other"])
    assert reasons("missing") == reasons("stale") == {"b.parquet": "input changed"}
    score(data, output)
    assert reasons() == {}


def test_touched_input_is_not_a_changed_one(
    data: Path, output: Output, score: Callable[..., object], reasons: Callable[..., dict[str, str]]
) -> None:
    score(data, output)
    (data / "b.parquet").touch()
    assert reasons() == {}


def test_other_checkpoint_is_stale_only_if_asked(
    data: Path,
    output: Output,
    checkpoint: CheckpointId,
    score: Callable[..., object],
    reasons: Callable[..., dict[str, str]],
) -> None:
    score(data, output)
    challenger = CheckpointId("v2", "e" * 32)
    assert reasons("missing", by=challenger) == {}
    assert reasons("stale", by=challenger) == dict.fromkeys(["a.parquet", "b.parquet", "date=1/c.parquet"], "stale")
    assert reasons("stale", by=replace(checkpoint, version="same weights, another name")) == {}


def test_input_cut_otherwise_has_changed(
    data: Path,
    output: Output,
    put: Callable[..., Path],
    score: Callable[..., object],
    checkpoint: CheckpointId,
    plan: Callable[..., tuple[Source, tuple[Shard, ...]]],
) -> None:
    score(data, output)
    other = Output(output.root, replace(output.settings, limits=ShardLimits(rows=1)))
    _, shards = plan(data, other)
    pending = find_pending(other, shards, checkpoint, "missing")
    assert {each.reason for each in pending} == {"input changed"}
