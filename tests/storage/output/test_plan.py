"""What a run would do is read from the files of the input and the output alone, each footer once."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest

import storage.input.reading
import storage.input.shards
import storage.output.layout
from builders import scored_files
from storage.errors import OutputError
from storage.input.shards import ShardLimits
from storage.input.tokens import TokenRules
from storage.locations import Location
from storage.output.layout import AttentionSaving, Output, OutputSettings
from storage.output.plan import Mode, plan_output
from storage.registry.checkpoints import CheckpointId

NAMES = ["a.parquet", "b.parquet", "date=1/c.parquet"]
CHALLENGER = CheckpointId("v2", "e" * 32)

Score = Callable[..., object]
Reasons = Callable[..., dict[str, str]]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(Location.parse(tmp_path / "out"), OutputSettings())


@pytest.fixture
def reasons(data: Path, output: Output, checkpoint: CheckpointId) -> Reasons:
    """reasons(mode): why each pending shard of the dataset is to be scored, by its name."""

    def reasons(mode: Mode = "missing", *, by: CheckpointId = checkpoint, to: Output = output) -> dict[str, str]:
        pending = plan_output(str(data), to).pending(by, mode)
        assert [each.shard.name for each in pending] == sorted(each.shard.name for each in pending)
        return {each.shard.name: each.reason for each in pending}

    return reasons


@pytest.fixture(autouse=True)
def three_files(put: Callable[..., Path]) -> None:
    for name in NAMES:
        put(name, [name.encode(), b"", None])


def test_everything_is_missing_at_first_and_nothing_afterwards(
    data: Path, output: Output, score: Score, reasons: Reasons
) -> None:
    assert reasons() == dict.fromkeys(NAMES, "missing")
    assert reasons("all") == dict.fromkeys(NAMES, "asked for")
    score(data, output)
    assert reasons("missing") == reasons("stale") == {}
    assert reasons("all") == dict.fromkeys(NAMES, "asked for")


@pytest.mark.parametrize("folder", ["predictions", "attention"])
@pytest.mark.parametrize("whole", [False, True])
def test_shard_with_a_file_missing_or_damaged_is_missing(
    folder: str, whole: bool, data: Path, output: Output, score: Score, reasons: Reasons
) -> None:
    score(data, output)
    path = Path(output.root.path, folder, "b.parquet")
    content = path.read_bytes()
    path.unlink()
    if not whole:
        path.write_bytes(content[:-20])
    assert reasons() == {"b.parquet": "missing"}


def test_run_that_was_killed_between_the_two_renames_left_its_shard_missing(
    data: Path, output: Output, score: Score, reasons: Reasons, tmp_path: Path
) -> None:
    score(data, output)
    other = Output(Location.parse(tmp_path / "other"), output.settings)
    score(data, other, by=CHALLENGER)
    shutil.copy(other.attention("b.parquet").path, output.attention("b.parquet").path)
    assert reasons() == reasons(by=CHALLENGER) == {"b.parquet": "missing"}


def test_without_attention_predictions_alone_are_the_commit(
    data: Path, tmp_path: Path, score: Score, reasons: Reasons
) -> None:
    bare = Output(Location.parse(tmp_path / "bare"), OutputSettings(attention=AttentionSaving("none")))
    score(data, bare)
    assert not (tmp_path / "bare/attention").exists()
    assert reasons(to=bare) == {}


def test_changed_input_is_told_and_a_touched_one_is_none(
    data: Path, output: Output, put: Callable[..., Path], score: Score, reasons: Reasons
) -> None:
    score(data, output)
    (data / "b.parquet").touch()
    assert reasons() == {}
    put("b.parquet", [b"other"])
    assert reasons("missing") == reasons("stale") == {"b.parquet": "input changed"}
    score(data, output)
    assert reasons() == {}


def test_other_checkpoint_is_stale_only_if_asked(
    data: Path, output: Output, checkpoint: CheckpointId, score: Score, reasons: Reasons
) -> None:
    score(data, output)
    assert reasons("missing", by=CHALLENGER) == {}
    assert reasons("stale", by=CHALLENGER) == dict.fromkeys(NAMES, "stale")
    assert reasons("stale", by=replace(checkpoint, version="same weights, another name")) == {}


def test_all_reasons_are_told_whatever_the_mode_selects(data: Path, output: Output, score: Score) -> None:
    score(data, output)
    output.predictions("a.parquet").delete()
    plan = plan_output(str(data), output)

    told = plan.reasons(CHALLENGER)
    selected = {mode: [(each.shard.name, each.reason) for each in plan.selected(told, mode)] for mode in get_args(Mode)}

    assert told == {"a.parquet": "missing", "b.parquet": "stale", "date=1/c.parquet": "stale"}
    assert selected["missing"] == [("a.parquet", "missing")]
    assert selected["stale"] == selected["all"] == list(told.items())


def test_input_cut_otherwise_has_changed(
    data: Path, output: Output, score: Score, checkpoint: CheckpointId, tmp_path: Path
) -> None:
    score(data, output)
    settings = replace(output.settings, limits=ShardLimits(rows=1))
    elsewhere = plan_output(str(data), Output(Location.parse(tmp_path / "new"), settings))
    plan = replace(elsewhere, output=Output(output.root, settings))
    assert {each.reason for each in plan.pending(checkpoint, "missing")} == {"input changed"}


def test_each_footer_is_read_once_to_plan_and_an_input_twice_to_score(
    data: Path, output: Output, checkpoint: CheckpointId, score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second reading of an input is the one that would notice that it was overwritten while it was read."""
    score(data, output)
    reads: Counter[str] = Counter()

    for module in (storage.input.shards, storage.input.reading, storage.output.layout):
        real = module.read_footer

        def counting(location: Location, real: Callable[..., object] = real) -> object:
            reads[location.path] += 1
            return real(location)

        monkeypatch.setattr(module, "read_footer", counting)

    plan = plan_output(str(data), output)
    assert reads == {str(data / name): 1 for name in NAMES}
    reads.clear()
    plan.pending(checkpoint, "stale")
    assert reads == {f"{output.root}/{kind}/{name}": 1 for kind in ("predictions", "attention") for name in NAMES}
    reads.clear()
    score(data, output)
    assert {name: reads[str(data / name)] for name in NAMES} == dict.fromkeys(NAMES, 3)  # one of them to plan


def test_files_whose_types_do_not_go_together_are_named_before_they_fail(
    put: Callable[..., Path], data: Path, output: Output
) -> None:
    moments = pa.array([0, 1], pa.timestamp("us"))
    put("a.parquet", id=[1, 2])
    put("b.parquet", id=moments)
    put("c.parquet", id=moments)
    put("d.parquet", id=["3", "4"])
    put("e.parquet")
    assert plan_output(str(data), output).misfits() == (
        "b.parquet and 1 more of such types will fail: 'id' is timestamp[us] here, and int64 in this output",
    )


class TestErrors:
    """Files with errors that other rules may mend."""

    @pytest.fixture
    def strict(self, data: Path, output: Output, put: Callable[..., Path]) -> Output:
        put("a.parquet", [b"abcd", b"", None])
        put("b.parquet", pa.array([[1], [256], None], pa.list_(pa.int16())))
        (data / NAMES[2]).unlink()
        return replace(output, settings=OutputSettings(max_tokens=3, long_rows="error"))

    @pytest.mark.parametrize(
        ("rules", "expected"),
        [
            (TokenRules(256, 3, "error"), []),
            (TokenRules(255, 2, "error"), []),
            (TokenRules(256, 4, "error"), ["a.parquet"]),
            (TokenRules(257, 3, "error"), ["b.parquet"]),
            (TokenRules(257), ["a.parquet", "b.parquet"]),
        ],
    )
    def test_those_are_scored_again_that_the_rules_may_mend(
        self,
        rules: TokenRules,
        expected: list[str],
        data: Path,
        strict: Output,
        checkpoint: CheckpointId,
        score: Score,
    ) -> None:
        score(data, strict)
        plan = plan_output(str(data), strict)
        for by in (checkpoint, CHALLENGER):
            told = plan.reasons(by, mending=rules)
            assert [(each.shard.name, each.reason) for each in plan.selected(told, "errors")] == [
                (name, "with errors") for name in expected
            ]
        assert plan.pending(checkpoint, "missing") == plan.pending(checkpoint, "errors") == ()

    def test_longer_limit_costs_the_files_with_longer_rows_alone(
        self, data: Path, strict: Output, checkpoint: CheckpointId, score: Score, tmp_path: Path
    ) -> None:
        score(data, strict)
        said, new = {"max_tokens": 4}, OutputSettings().record()
        with pytest.raises(OutputError, match=r"max_tokens: 3 there, 4 asked for\n.* have --mode errors score"):
            Output.open(strict.root, said, new)
        for other in ({"max_tokens": 2}, {"max_tokens": 4, "long_rows": "truncate"}):
            with pytest.raises(OutputError, match="or ask for what is there"):
                Output.open(strict.root, other, new, may_lengthen=True)
        longer = Output.open(strict.root, said, new, may_lengthen=True)
        assert Output.existing(strict.root) != longer  # nothing is written before a run begins
        longer = longer.prepare(str(data))

        # From here on it is what a run finds that goes on after a kill, whatever its mode.
        assert Output.open(strict.root, {}, new).settings == longer.settings
        plan = plan_output(str(data), longer)
        assert [(each.shard.name, each.reason) for each in plan.pending(checkpoint, "missing")] == [
            ("a.parquet", "with errors")
        ]
        before = scored_files(strict.root.path)
        score(data, longer)
        after = scored_files(strict.root.path)
        assert {name for name in after if after[name] != before[name]} == {
            "attention/a.parquet",
            "predictions/a.parquet",
        }
        assert plan.pending(checkpoint, "missing") == ()
