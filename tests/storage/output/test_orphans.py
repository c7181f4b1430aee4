"""Orphans and leftovers: what no input accounts for is found and removed, and nothing else is."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.input.shards import ShardLimits, plan_shards
from storage.input.sources import find_source
from storage.locations import Location
from storage.output.layout import Output, OutputSettings
from storage.output.orphans import Removable, clear_superseded, find_leftovers, find_orphans, remove
from storage.output.plan import OutputPlan, plan_output

BOTH = ("attention", "predictions")


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(Location.parse(tmp_path / "output"), OutputSettings(limits=ShardLimits(rows=2)))


@pytest.fixture
def dated(put: Callable[..., Path], data: Path, output: Output, score: Callable[..., Any]) -> Path:
    """Two dates, each with a small file and one of three shards, all scored."""
    for date in ("date=2026-11-01", "date=2026-11-02"):
        put(f"{date}/a.parquet", [b"ab"])
        put(f"{date}/b.parquet", [b"ab", b"c"] * 3, row_group_size=2)
    score(data, output)
    return data


def _orphans(source: Path | str, output: Output) -> tuple[Removable, ...]:
    return find_orphans(plan_output(str(source), output))


def _found(source: Path | str, output: Output) -> list[tuple[str, str]]:
    return [(orphan.path, orphan.reason) for orphan in _orphans(source, output)]


def _files(output: Output, kind: str = "predictions") -> list[str]:
    root = Path(output.root.path) / kind
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def _unreadable_input(data: Path, output: Output) -> None:
    (data / "date=2026-11-01/b.parquet").write_text("cut short")


def _attention_of_a_pending_shard(data: Path, output: Output) -> None:
    output.predictions("date=2026-11-01/a.parquet").delete()


def _files_that_are_not_parquet(data: Path, output: Output) -> None:
    for name in ("README", "_SUCCESS", ".hidden.parquet", "_old/a.parquet"):
        output.predictions(name).write_bytes(b"")


@pytest.mark.parametrize(
    "happen", [None, _unreadable_input, _attention_of_a_pending_shard, _files_that_are_not_parquet]
)
def test_what_an_input_may_still_account_for_is_no_orphan(
    dated: Path, output: Output, happen: Callable[[Path, Output], None] | None
) -> None:
    if happen:
        happen(dated, output)

    assert _found(dated, output) == []


def test_output_of_an_input_that_is_gone_is_found_with_all_of_its_shards(dated: Path, output: Output) -> None:
    (dated / "date=2026-11-01/b.parquet").unlink()

    assert _found(dated, output) == [
        (f"{kind}/date=2026-11-01/b-{shard:05d}-of-00003.parquet", "input is gone")
        for kind in BOTH
        for shard in range(3)
    ]


def test_output_of_an_input_that_is_cut_otherwise_now_is_superseded(
    dated: Path, output: Output, put: Callable[..., Path]
) -> None:
    put("date=2026-11-02/b.parquet", [b"ab", b"c"] * 2, row_group_size=2)  # two shards, not three
    put("date=2026-11-02/a.parquet", [b"ab", b"c"] * 2, row_group_size=2)  # two, not one

    orphans = _orphans(dated, output)

    names = ["a.parquet", *(f"b-{shard:05d}-of-00003.parquet" for shard in range(3))]
    assert [(orphan.path, orphan.reason) for orphan in orphans] == [
        (f"{kind}/date=2026-11-02/{name}", "superseded") for kind in BOTH for name in names
    ]
    assert {orphan.input for orphan in orphans} == {"date=2026-11-02/a.parquet", "date=2026-11-02/b.parquet"}
    assert all(orphan.num_bytes > 0 for orphan in orphans)


@pytest.mark.parametrize("scope", ["date=2026-11-02", "date=2026-11-02/a.parquet"])
def test_outside_of_the_asked_scope_nothing_is_an_orphan(dated: Path, output: Output, scope: str) -> None:
    shutil.rmtree(dated / "date=2026-11-01")
    (dated / "date=2026-11-02/b.parquet").unlink()

    gone = [path for path, _ in _found(dated / scope, output)]

    if scope.endswith(".parquet"):
        assert gone == []
    else:
        assert {Path(path).parts[1] for path in gone} == {"date=2026-11-02"}
        assert len(gone) == 6


def test_of_one_file_its_own_other_shards_are_orphans(dated: Path, output: Output, put: Callable[..., Path]) -> None:
    path = put("date=2026-11-02/b.parquet", [b"ab"])
    (dated / "date=2026-11-02/a.parquet").unlink()

    assert {(Path(path).name, reason) for path, reason in _found(path, output)} == {
        (f"b-{shard:05d}-of-00003.parquet", "superseded") for shard in range(3)
    }


def test_another_input_whose_name_looks_like_a_shard_is_not_taken_for_one(
    put: Callable[..., Path], data: Path, output: Output, score: Callable[..., Any]
) -> None:
    put("b-00000-of-00002.parquet", [b"x"])
    score(data, output)
    put("b.parquet", [b"ab"])

    assert _found(data, output) == []
    assert _found(data / "b.parquet", output) == []
    assert clear_superseded(plan_output(f"{data}/b.parquet", output)) == ()
    (data / "b-00000-of-00002.parquet").unlink()
    assert _found(data / "b.parquet", output) == []
    assert _found(data, output) == [(f"{kind}/b-00000-of-00002.parquet", "input is gone") for kind in BOTH]


def test_a_glob_says_nothing_of_inputs_that_it_does_not_name(
    dated: Path, output: Output, put: Callable[..., Path]
) -> None:
    (dated / "date=2026-11-01/b.parquet").unlink()
    put("date=2026-11-02/a.parquet", [b"ab", b"c"] * 2, row_group_size=2)

    assert _found(f"{dated}/*/a.parquet", output) == [
        (f"{kind}/date=2026-11-02/a.parquet", "superseded") for kind in BOTH
    ]


def test_output_of_an_input_that_vanished_while_it_was_planned_is_kept(dated: Path, output: Output) -> None:
    source = find_source(str(dated))
    (dated / "date=2026-11-01/b.parquet").unlink()
    plan = plan_shards(source, output.settings.columns, output.settings.limits)

    assert [file.file for file in plan.unreadable] == ["date=2026-11-01/b.parquet"]
    assert find_orphans(OutputPlan(source, output, plan.shards, plan.unreadable)) == ()


def test_output_of_an_input_that_the_source_leaves_out_is_kept(
    put: Callable[..., Path], data: Path, output: Output, score: Callable[..., Any]
) -> None:
    put("a.parquet")
    score(put("notes.txt"), output)  # named outright: in a folder, its suffix does not count

    assert _found(data, output) == []


def test_attention_alone_of_an_input_that_is_gone_is_an_orphan(dated: Path, output: Output) -> None:
    (Path(output.root.path) / "predictions/date=2026-11-01/a.parquet").unlink()
    (dated / "date=2026-11-01/a.parquet").unlink()

    assert _found(dated, output) == [("attention/date=2026-11-01/a.parquet", "input is gone")]


def test_a_file_that_does_not_say_what_made_it_is_told_and_never_removed(dated: Path, output: Output) -> None:
    strange = Path(output.root.path) / "predictions/date=2026-11-01/mine.parquet"
    shutil.copy(dated / "date=2026-11-01/a.parquet", strange)

    (orphan,) = _orphans(dated, output)

    assert (orphan.path, orphan.reason) == ("predictions/date=2026-11-01/mine.parquet", "unknown origin")
    assert remove(output, [orphan]) == ()
    assert strange.exists()


def test_an_output_that_is_not_there_has_neither(put: Callable[..., Path], data: Path, output: Output) -> None:
    put("a.parquet")

    assert _found(data, output) == []
    assert find_leftovers(output) == ()
    assert clear_superseded(plan_output(str(data), output)) == ()


def _leave(output: Output, *paths: str) -> None:
    for path in paths:
        place = Path(output.root.path) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"unfinished")


LEFT = (
    "._dataset.json.0123abcd.tmp",
    "attention/date=2026-11-01/.a.parquet.0123abcd.tmp",
    "predictions/.a.parquet.89abcdef.tmp",
    "runs/.5.json.0123abcd.tmp",
)


def test_leftovers_of_killed_runs_are_found_in_each_place_where_a_run_writes(dated: Path, output: Output) -> None:
    kept = (".a.tmp", "predictions/a.0123abcd.tmp", "predictions/.a.parquet.0123abcd", "elsewhere/.a.0123abcd.tmp")
    _leave(output, *LEFT, *kept)

    with output.predictions("z.parquet").replacing() as temporary:
        temporary.write_bytes(b"unfinished")
        left = (*LEFT[:3], f"predictions/{temporary.name}", *LEFT[3:])
        leftovers = find_leftovers(output)

    assert leftovers == tuple(Removable(path, "left by a killed run", "", len(b"unfinished")) for path in left)


@pytest.mark.parametrize(
    ("scope", "found"),
    [
        ("date=2026-11-01", ["date=2026-11-01/.a.parquet.0123abcd.tmp"]),
        ("date=2026-11-02/a.parquet", ["date=2026-11-02/.a-00000-of-00002.parquet.0123abcd.tmp"]),
        ("date=2026-11-03", []),
    ],
)
def test_only_leftovers_of_the_part_that_is_held_are_found(output: Output, scope: str, found: list[str]) -> None:
    names = (
        "date=2026-11-01/.a.parquet.0123abcd.tmp",
        "date=2026-11-011/.a.parquet.0123abcd.tmp",
        "date=2026-11-02/.a-00000-of-00002.parquet.0123abcd.tmp",
        "date=2026-11-02/.ab.parquet.0123abcd.tmp",
    )
    _leave(output, "runs/.5.json.0123abcd.tmp", *(f"predictions/{name}" for name in names))

    assert [each.path for each in find_leftovers(output, scope)] == [f"predictions/{name}" for name in found]


def test_removal_takes_predictions_first_then_attention_and_the_folders_it_empties(
    dated: Path, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(dated / "date=2026-11-01")
    (dated / "date=2026-11-02/a.parquet").unlink()
    deleted: list[str] = []
    delete = Location.delete
    monkeypatch.setattr(Location, "delete", lambda self: (deleted.append(self.path), delete(self)))

    orphans = _orphans(dated, output)

    removed = remove(output, orphans)

    assert [output.root.relative(path) for path in deleted] == list(removed)
    assert [path.split("/")[0] for path in removed] == ["predictions"] * 5 + ["attention"] * 5
    for kind in BOTH:
        assert _files(output, kind) == [f"date=2026-11-02/b-{shard:05d}-of-00003.parquet" for shard in range(3)]
        assert not (Path(output.root.path) / kind / "date=2026-11-01").exists()
    assert remove(output, orphans) == removed, "what is gone already is no trouble"


def test_the_two_kinds_keep_their_folder_when_nothing_is_left(
    put: Callable[..., Path], data: Path, output: Output, score: Callable[..., Any]
) -> None:
    put("a.parquet")
    score(data, output)
    (data / "a.parquet").rename(data / "b.parquet")

    assert len(remove(output, _orphans(data, output))) == 2
    assert sorted(path.name for path in Path(output.root.path).iterdir() if path.is_dir()) == list(BOTH)


def test_before_scoring_what_is_superseded_goes_with_the_leftovers(
    dated: Path, output: Output, put: Callable[..., Path]
) -> None:
    put("date=2026-11-02/b.parquet", [b"ab", b"c"] * 2, row_group_size=2)
    (dated / "date=2026-11-01/a.parquet").unlink()  # an orphan, but none of an input that is scored
    _leave(output, *LEFT)
    before = set(_files(output))

    removed = clear_superseded(plan_output(str(dated), output))

    shards = [f"date=2026-11-02/b-{shard:05d}-of-00003.parquet" for shard in range(3)]
    assert sorted(removed) == sorted([*(f"{kind}/{shard}" for kind in BOTH for shard in shards), *LEFT])
    assert set(_files(output)) == before - {*shards, ".a.parquet.89abcdef.tmp"}


def test_partitions_that_begin_with_an_underscore_are_looked_at(
    data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    put("_date=2026-11-01/a.parquet", [b"ab"])
    score(data, output)
    (data / "_date=2026-11-01/a.parquet").rename(put("b.parquet", [b"ab"]))
    assert [each.path for each in find_orphans(plan_output(str(data), output))] == [
        f"{kind}/_date=2026-11-01/a.parquet" for kind in sorted(BOTH)
    ]


def test_output_of_a_file_that_is_read_by_another_name_now_is_found_and_goes_before_scoring(
    tmp_path: Path, data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    put("../elsewhere/p.parquet", [b"ab"] * 3, row_group_size=1)
    put("date=1/a.parquet")
    (data / "date=9").symlink_to(tmp_path / "elsewhere")
    score(data, output)
    (data / "date=2").symlink_to(tmp_path / "elsewhere")

    names = [f"date=9/p-{shard:05d}-of-00002.parquet" for shard in range(2)]
    for source in (data, f"{data}/**"):
        orphans = _orphans(source, output)
        assert [each.path for each in orphans] == [f"{kind}/{name}" for kind in BOTH for name in names]
        assert {each.why for each in orphans} == {"its input is read as date=2/p.parquet"}
    clear_superseded(plan_output(str(data), output))
    assert _files(output) == ["date=1/a.parquet"]


def test_where_a_folder_takes_the_place_of_a_file_and_back_the_old_output_makes_room(
    data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    for old, new in (("a.parquet", "a.parquet/b.parquet"), ("a.parquet/b.parquet", "a.parquet")):
        shutil.rmtree(data)
        put(old, [b"ab"])
        clear_superseded(plan_output(str(data), output))
        score(data, output)
        shutil.rmtree(data)
        put(new, [b"ab"])
        assert [each.why for each in _orphans(data, output)] == [f"superseded, {old} is cut otherwise now"] * 2
        clear_superseded(plan_output(str(data), output))
        score(data, output)
        assert _files(output) == [new]


def test_before_scoring_a_slice_the_rest_is_left_alone(dated: Path, output: Output, put: Callable[..., Path]) -> None:
    for date in ("date=2026-11-01", "date=2026-11-02"):
        put(f"{date}/b.parquet", [b"ab"])

    removed = clear_superseded(plan_output(f"{dated}/date=2026-11-02", output))

    assert {Path(path).parts[1] for path in removed} == {"date=2026-11-02"}
    assert len(removed) == 6
