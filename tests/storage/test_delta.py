"""Predictions as a Delta table: one commit for what changed, read alike by every reader, whole before and after it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from polars.testing import assert_frame_equal

from storage.delta import FILE, Published, Table
from storage.errors import OutputError
from storage.input.columns import Columns
from storage.locations import Location, address_and_options
from storage.output.frames import open_predictions
from storage.output.layout import Output, OutputSettings
from storage.output.plan import OutputPlan, plan_output
from storage.registry.checkpoints import CheckpointId

NEXT = CheckpointId("v2", "e" * 32)
ODD = "date=a%20%C3%A9%25b/part é 1.parquet"


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(Location.parse(tmp_path / "out put"), OutputSettings(columns=Columns(keep=("number",))))


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "table")


@pytest.fixture
def scored(put: Callable[..., Path], score: Callable[..., Any], data: Path, output: Output) -> Path:
    """Three partitions, one of them of odd characters and one null, whose first row can't be scored."""
    for number, name in enumerate((ODD, "date=__HIVE_DEFAULT_PARTITION__/part-0.parquet", "date=c/part-0.parquet")):
        put(name, tokens=[None, b"ab", b"c" * (number + 1)], number=pa.array([number] * 3, pa.uint8()))
    score(data, output)
    return data


def published(place: str, source: Path | str, output: Output, scored: set[str] | None = None) -> Published:
    plan = plan_output(str(source), output)
    return Table.of(place, output, plan.source.root).publish([plan], scored or set(), "a run")


def rows_of(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort("date", "row", nulls_last=True)


def test_every_reader_finds_the_rows_of_the_output_with_their_partitions_and_files(
    scored: Path, output: Output, place: str
) -> None:
    assert published(place, scored, output) == Published(0, 3)

    expected = rows_of(open_predictions(output.root.path).collect().with_columns(pl.col("probabilities").arr.to_list()))
    found = rows_of(pl.scan_delta(place).collect())
    assert_frame_equal(found.drop(FILE), expected, check_dtypes=False, check_column_order=False)
    assert found[FILE].unique().sort().to_list() == sorted(
        str(path.relative_to(scored)) for path in scored.rglob("*.p*")
    )
    assert pl.scan_delta(place).filter(pl.col("date") == "a é%b").collect().height == 3
    for table in (DeltaTable(place).to_pyarrow_table(), DeltaTable(place).to_pyarrow_dataset().to_table()):
        assert_frame_equal(rows_of(pl.DataFrame(pl.from_arrow(table))), found, check_column_order=False)
    comments = {field.name: field.metadata.get("comment") for field in DeltaTable(place).schema().fields}
    assert comments["score"] == "the probability of prediction"
    assert DeltaTable(place).history()[0]["attnlstm.run"] == "a run"


def test_what_changed_is_one_commit_and_what_did_not_is_none(
    scored: Path, output: Output, place: str, put: Callable[..., Path], score: Callable[..., Any]
) -> None:
    published(place, scored, output)
    log = [path.read_bytes() for path in Path(place, "_delta_log").iterdir()]

    assert published(place, scored, output) == Published(0)
    score(scored, output)  # to the same bytes
    assert published(place, scored, output, {shard.name for shard in plan_output(str(scored), output).shards}) == (
        Published(0)
    )
    assert [path.read_bytes() for path in Path(place, "_delta_log").iterdir()] == log

    put("date=c/part-0.parquet", tokens=[b"other", b"rows"], number=pa.array([7, 7], pa.uint8()))
    put("date=d/part-0.parquet", tokens=[b"new"], number=pa.array([8], pa.uint8()))
    score(scored / "date=c", output, by=NEXT)
    score(scored / "date=d", output, by=NEXT)
    assert published(place, scored, output) == Published(1, 2, 1)
    counts = pl.scan_delta(place).group_by("checkpoint").len().collect().rows()
    assert sorted(counts) == [("v1", 6), ("v2", 3)]


def test_readers_that_are_open_see_all_of_the_old_or_all_of_the_new(
    scored: Path, output: Output, place: str, score: Callable[..., Any]
) -> None:
    published(place, scored, output)
    lazy, opened, dataset = pl.scan_delta(place), DeltaTable(place), DeltaTable(place).to_pyarrow_dataset()

    score(scored, output, by=NEXT)  # replaces every file of the output
    assert pl.scan_delta(place).collect()["checkpoint"].unique().to_list() == ["v1"]
    assert published(place, scored, output) == Published(1, 3, 3)

    for old in (opened.to_pyarrow_table(), dataset.to_table()):
        assert old["checkpoint"].to_pylist() == ["v1"] * 9
    assert lazy.collect()["checkpoint"].to_list() == ["v2"] * 9  # Polars looks when it collects
    assert pl.scan_delta(place, version=0).collect()["checkpoint"].unique().to_list() == ["v1"]


def test_a_run_that_was_killed_before_its_commit_is_completed_by_the_next(
    scored: Path, output: Output, place: str, score: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    published(place, scored, output)
    score(scored, output, by=NEXT)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Table, "_commit", die)
        with pytest.raises(KeyboardInterrupt):
            published(place, scored, output)
    written = sorted(Path(place).rglob("*.parquet"))
    assert len(written) == 6
    assert DeltaTable(place).version() == 0

    assert published(place, scored, output) == Published(1, 3, 3)
    assert sorted(Path(place).rglob("*.parquet")) == written


def test_a_commit_that_comes_second_is_made_up_anew(
    scored: Path, output: Output, place: str, score: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    published(place, scored, output)
    score(scored, output, by=NEXT)
    changes, others = Table._changes, iter([scored / "date=c"])

    def overtaken(self: Table, plans: list[OutputPlan], names: set[str], found: DeltaTable | None) -> Any:
        made = changes(self, plans, names, found)
        for other in others:  # once, between the changes and their commit
            assert published(place, other, output) == Published(1, 1, 1)
        return made

    monkeypatch.setattr(Table, "_changes", overtaken)
    assert published(place, scored, output) == Published(2, 2, 2)
    assert pl.scan_delta(place).collect()["checkpoint"].to_list() == ["v2"] * 9


def test_what_is_gone_from_the_output_goes_from_the_table_if_it_was_of_the_source(
    scored: Path, output: Output, place: str
) -> None:
    published(place, scored, output)
    for name in ("date=c/part-0.parquet", ODD):
        Path(output.predictions(name).path).unlink()
        (scored / name).unlink()
    (scored / "date=c").rmdir()

    assert published(place, scored / "date=__HIVE_DEFAULT_PARTITION__", output) == Published(0)
    assert published(place, scored, output) == Published(1, 0, 2)


@pytest.fixture
def refused(scored: Path, output: Output, place: str, tmp_path: Path) -> Iterator[Callable[..., None]]:
    def check(match: str, at: str = place, of: Output = output) -> None:
        with pytest.raises(OutputError, match=match):
            published(at, scored, of)

    yield check
    assert not Path(place, "_delta_log", f"{1:020}.json").exists()


def test_tables_of_something_else_and_places_of_something_else_are_refused(
    refused: Callable[..., None], scored: Path, output: Output, place: str, tmp_path: Path
) -> None:
    refused("lies in the source", at=str(scored / "table"))
    refused("lies in the source", at=output.predictions("table").path)
    pl.DataFrame({"x": [1]}).write_delta(str(tmp_path / "theirs"))
    refused(r"theirs is none that attnlstm made, not of .*out put. Publish elsewhere", at=str(tmp_path / "theirs"))
    published(place, scored, output)
    refused(
        r"table is that of .*out put, not of .*other", of=Output(Location.parse(tmp_path / "other"), output.settings)
    )


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("a b", pa.array([1, 2]), "needs a column of each name once, and 'a b' is no name for it"),
        ("file", pa.array([1, 2]), "needs a column of each name once, and 'file' is there already"),
        ("took", pa.array([1, 2], pa.duration("us")), r"has no column of type duration\[us\], such as took"),
    ],
)
def test_columns_that_no_delta_table_has_are_refused(
    name: str,
    values: pa.Array,
    message: str,
    put: Callable[..., Path],
    score: Callable[..., Any],
    data: Path,
    tmp_path: Path,
    place: str,
) -> None:
    output = Output(Location.parse(tmp_path / "output"), OutputSettings(columns=Columns(keep=(name,))))
    put("a.parquet", **{name: values})
    score(data, output)
    with pytest.raises(OutputError, match=f"{message}. Leave it out of keep"):
        published(place, data, output)


def test_names_that_no_delta_table_has_are_refused_before_anything_is_scored(
    data: Path, tmp_path: Path, place: str
) -> None:
    output = Output(Location.parse(tmp_path / "output"), OutputSettings(columns=Columns(keep=("file",))))
    with pytest.raises(OutputError, match="'file' is there already"):
        Table.of(place, output, Location.parse(data))


def test_an_object_store_holds_output_and_table_alike(
    put: Callable[..., Path], score: Callable[..., Any], data: Path, s3: Callable[[str], str]
) -> None:
    output = Output(Location.parse(s3("output")), OutputSettings())
    put(ODD)
    score(data, output)

    assert published(s3("table"), data, output) == Published(0, 1)
    assert published(s3("table"), data, output) == Published(0)
    score(data, output, by=NEXT)
    names = {shard.name for shard in plan_output(str(data), output).shards}  # a store's times are whole seconds
    assert published(s3("table"), data, output, names) == Published(1, 1, 1)
    address, options = address_and_options(s3("table"))
    found = pl.scan_delta(address, storage_options=options).select("checkpoint", "date").collect()
    assert found.rows() == [("v2", "a é%b")] * 2
