"""The whole path from Parquet to Parquet: every row there once, in order, with its own scores; all or nothing."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import FileError, OutputError
from storage.input.columns import Columns
from storage.input.shards import Shard, ShardLimits
from storage.input.tokens import TokenRules, decode_tokens
from storage.locations import Location
from storage.output.frames import open_attention, open_predictions
from storage.output.layout import AttentionSaving, Output, OutputSettings, read_stamp
from storage.output.plan import existing_output, plan_output
from storage.output.predictions import top_weights, write_shard
from storage.output.verification import verify_output
from storage.registry.checkpoints import CheckpointId

CLASSES = ("even", "odd", "third")
TOKENS = [b"ab", b"", None, b"cde", b"\xff", b"f" * 9]

Scored = Callable[..., tuple[Shard, ...]]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(Location.parse(tmp_path / "out"), OutputSettings())


@pytest.fixture
def scored(
    data: Path, output: Output, put: Callable[..., Path], score: Callable[..., tuple[Shard, ...]]
) -> Callable[..., tuple[Shard, ...]]:
    """scored(tokens, settings, **columns): a.parquet with these, scored into an output with these settings."""

    def run(
        tokens: object = TOKENS, settings: OutputSettings = output.settings, chunk_rows: int = 65_536, **columns: object
    ) -> tuple[Shard, ...]:
        put("a.parquet", tokens, **columns)
        return score(data, Output(output.root, settings), chunk_rows=chunk_rows)

    return run


def predictions(output: Output, name: str) -> pa.Table:
    return pq.ParquetFile(output.predictions(name).path).read()


def attention(output: Output, name: str) -> pa.Table:
    return pq.ParquetFile(output.attention(name).path).read()


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected_row(
    row: int, row_id: object, tokens: list[int] | None, max_tokens: int | None, top: int
) -> dict[str, object]:
    """What the scorer of these tests makes of one row, by itself."""
    error = "tokens are null" if tokens is None else "no tokens" if not tokens else None
    of_row: dict[str, object] = {"row": row, "id": row_id, "num_tokens": None if tokens is None else len(tokens)}
    of_row |= {"error": error, "truncated": False}
    of_row |= dict.fromkeys(["prediction", "score", "probabilities", "positions", "weights"])
    if error or tokens is None:
        return of_row
    scored = tokens[:max_tokens]
    of_row["truncated"] = len(scored) < len(tokens)
    parts = [1.0, sum(scored) % 7, sum(scored) % 5]
    probabilities = [np.float32(part / sum(parts)) for part in parts]
    of_row["prediction"] = CLASSES[probabilities.index(max(probabilities))]
    of_row["score"], of_row["probabilities"] = max(probabilities), probabilities
    weights = [np.float32((token + 1) / (sum(scored) + len(scored))) for token in scored]
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))[:top] if top else range(len(weights))
    of_row["positions"], of_row["weights"] = list(order), [weights[position] for position in order]
    return of_row


@st.composite
def inputs(draw: st.DrawFn) -> tuple[list[object] | None, pa.Array, list[list[int] | None]]:
    """Ids, a tokens column and what its cells say."""
    kind = draw(st.sampled_from([pa.binary(), pa.large_list(pa.int32()), pa.list_(pa.uint8())]))
    cells = draw(st.lists(st.none() | st.binary(max_size=6), max_size=40))
    said = [None if cell is None else list(cell) for cell in cells]
    column = pa.array(cells if kind == pa.binary() else said, kind)
    choices: list[list[object] | None] = [None, list(range(len(cells))), [f"row {i // 2}" for i in range(len(cells))]]
    return draw(st.sampled_from(choices)), column, said


@given(
    inputs(),
    st.integers(1, 15),
    st.integers(1, 30),
    st.integers(1, 20),
    st.none() | st.integers(1, 4),
    st.sampled_from(["full", "none", "top:1", "top:3"]),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_comes_out_once_in_order_with_its_own_scores(
    data: Path,
    tmp_path: Path,
    put: Callable[..., Path],
    score: Callable[..., tuple[Shard, ...]],
    drawn: tuple[list[object] | None, pa.Array, list[list[int] | None]],
    row_group_size: int,
    shard_rows: int,
    chunk_rows: int,
    max_tokens: int | None,
    saving: str,
) -> None:
    ids, column, said = drawn
    put("a.parquet", column, row_group_size=row_group_size, **({} if ids is None else {"id": ids}))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    kind = AttentionSaving.parse(saving)
    chosen = OutputSettings(limits=ShardLimits(rows=shard_rows), attention=kind, max_tokens=max_tokens)
    output = Output(Location.parse(tmp_path / "out"), chosen)
    shards = score(data, output, chunk_rows=chunk_rows)

    row_ids = list(range(len(said))) if ids is None else ids
    expected = [expected_row(*row, max_tokens, kind.top) for row in zip(range(len(said)), row_ids, said, strict=True)]
    rows = [row for shard in shards for row in predictions(output, shard.name).to_pylist()]
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert {name: row[name] for name in wanted if name not in ("weights", "positions")} == {
            name: value for name, value in wanted.items() if name not in ("weights", "positions")
        }
        assert row["checkpoint"] == "v1"
    if saving == "none":
        assert not (tmp_path / "out/attention").exists()
        return
    saved = [row for shard in shards for row in attention(output, shard.name).to_pylist()]
    names = ["row", "id", *([] if saving == "full" else ["positions"]), "weights"]
    assert saved == [{name: row[name] for name in names} for row in expected]
    for row, wanted in zip(saved, expected, strict=True):
        if saving == "full" and not wanted["error"]:
            assert sum(row["weights"]) == pytest.approx(1, abs=1e-5)


def test_columns_and_types(output: Output, scored: Scored) -> None:
    columns = {"id": [f"r{i}" for i in range(6)], "n": pa.array(range(6), pa.int8()), "tags": [["x"]] * 6}
    scored(settings=OutputSettings(columns=Columns(keep=("n", "tags"))), **columns)
    assert pq.read_schema(output.predictions("a.parquet").path).remove_metadata() == pa.schema(
        {
            "row": pa.int64(),
            "id": pa.string(),
            "n": pa.int8(),
            "tags": pa.list_(pa.field("element", pa.string())),
            "prediction": pa.string(),
            "score": pa.float32(),
            "probabilities": pa.list_(pa.field("element", pa.float32()), 3),
            "num_tokens": pa.int64(),
            "truncated": pa.bool_(),
            "error": pa.string(),
            "checkpoint": pa.string(),
        }
    )
    assert predictions(output, "a.parquet")["n"].to_pylist() == list(range(6))
    assert pq.read_schema(output.attention("a.parquet").path).remove_metadata() == pa.schema(
        {"row": pa.int64(), "id": pa.string(), "weights": pa.list_(pa.field("element", pa.float32()))}
    )


@pytest.mark.parametrize(
    ("classes", "label_type", "kind", "others"),
    [
        (("-1", "7", "10"), "int64", pa.int64(), ("1", "2", "3")),
        (("false", "true"), "bool", pa.bool_(), ("false", "true")),
    ],
)
def test_predictions_have_the_type_of_the_labels_and_an_output_one_type(
    classes: tuple[str, ...],
    label_type: str,
    kind: pa.DataType,
    others: tuple[str, ...],
    put: Callable[..., Path],
    data: Path,
    tmp_path: Path,
    score: Callable[..., object],
) -> None:
    put("a.parquet", [b"ab", None, b"cde"])
    output, old = (Output(Location.parse(tmp_path / name), OutputSettings()) for name in ("typed", "old"))

    def types(of: Output) -> set[pa.DataType]:
        """Of the predictions that are there, all of them right."""
        made = existing_output(str(of.root))
        planned = plan_output(str(data), made)
        assert not verify_output(planned).problems
        return {predictions(made, shard.name).schema.field("prediction").type for shard in planned.shards}

    score(data, output, classes=classes, label_type=label_type)
    frame = open_predictions(str(output.root)).collect()
    for prediction, p in zip(frame["prediction"], frame["probabilities"], strict=True):
        assert p is None if prediction is None else str(prediction).lower() == classes[p.arg_max()]
    assert types(output) == {kind}

    put("b.parquet", [b"f"])
    score(data, output, classes=others)  # of an older checkpoint, whose classes are strings
    assert types(output) == {kind}
    refused = rf"are {kind}, and the checkpoint's classes are not: even, odd, third\. Write"
    with pytest.raises(OutputError, match=refused):
        score(data, output)

    score(data, old, classes=others)
    record = tmp_path / "old/_dataset.json"
    kept = {name: value for name, value in json.loads(record.read_text()).items() if "schema" not in name}
    record.write_text(json.dumps(kept))  # as it was before types were recorded
    score(data, old, classes=classes, label_type=label_type)
    assert types(old) == {pa.string()}


def test_order_of_classes_is_in_the_schemas_metadata(output: Output, scored: Scored) -> None:
    scored()
    metadata = pq.read_schema(output.predictions("a.parquet").path).metadata
    assert json.loads(metadata[b"classes"]) == list(CLASSES)
    row = predictions(output, "a.parquet").to_pylist()[0]
    assert row["prediction"] == CLASSES[row["probabilities"].index(row["score"])]


def test_low_scores_have_no_prediction_and_keep_their_probabilities(
    output: Output, scored: Scored, data: Path, score: Scored, tmp_path: Path
) -> None:
    scored()
    always = predictions(output, "a.parquet").to_pylist()
    thresholds = np.array([0.3, 0.99, 0.3], np.float32)  # of "odd" none is sure enough
    abstaining = Output(Location.parse(tmp_path / "abstaining"), OutputSettings(abstain_below="precision=0.9"))
    score(data, abstaining, thresholds=thresholds)

    table = predictions(abstaining, "a.parquet")

    named = [row["prediction"] if row["prediction"] != "odd" else None for row in always]
    assert table.to_pylist() == [row | {"prediction": name} for row, name in zip(always, named, strict=True)]
    num_abstained = sum(row["prediction"] == "odd" for row in always)
    assert num_abstained
    metadata = pq.read_metadata(abstaining.predictions("a.parquet").path).metadata
    assert json.loads(metadata[b"thresholds"]) == pytest.approx([0.3, 0.99, 0.3])
    assert json.loads(metadata[b"attnlstm"])["num_abstained"] == num_abstained
    before = pq.read_metadata(output.predictions("a.parquet").path).metadata
    assert b"thresholds" not in before
    assert "num_abstained" not in json.loads(before[b"attnlstm"])
    assert existing_output(str(abstaining.root)).settings.abstain_below == "precision=0.9"
    assert OutputSettings(abstain_below="0.9").digest != OutputSettings().digest


def test_footers_tell_what_the_files_were_made_from(output: Output, scored: Scored) -> None:
    shards = scored(settings=OutputSettings(limits=ShardLimits(rows=4)), row_group_size=2)
    assert len(shards) == 2
    for shard in shards:
        stamp = read_stamp(output.predictions(shard.name))
        assert stamp is not None
        assert stamp == read_stamp(output.attention(shard.name))
        assert (stamp.file, stamp.fingerprint) == ("a.parquet", shard.fingerprint)
        assert (stamp.first_row, stamp.num_rows) == (shard.first_row, shard.num_rows)
        assert (stamp.checkpoint, stamp.checkpoint_digest) == ("v1", "d" * 32)
    counts = json.loads(pq.read_metadata(output.predictions(shards[0].name).path).metadata[b"attnlstm"])
    assert (counts["num_errors"], counts["num_tokens"]) == (2, 5)


def test_files_come_out_byte_for_byte_the_same(
    data: Path, tmp_path: Path, put: Callable[..., Path], score: Callable[..., object]
) -> None:
    put("d=1/a.parquet", TOKENS * 300, id=list(range(1800)), row_group_size=500)
    put("b.parquet", pa.array([[1, 2], [3]]))
    written = []
    for name in ("one", "two"):
        score(data, Output(Location.parse(tmp_path / name), OutputSettings(limits=ShardLimits(rows=600))))
        written.append(files_below(tmp_path / name))
    assert written[0] == written[1]
    assert sorted(written[0]) == [
        "README.md",
        "_dataset.json",
        "attention/b.parquet",
        "attention/d=1/a-00000-of-00002.parquet",
        "attention/d=1/a-00001-of-00002.parquet",
        "predictions/b.parquet",
        "predictions/d=1/a-00000-of-00002.parquet",
        "predictions/d=1/a-00001-of-00002.parquet",
    ]


@pytest.mark.parametrize("rows", [[], [None, b"", None]])
def test_shard_without_a_usable_row(rows: list[bytes | None], output: Output, scored: Scored) -> None:
    scored(rows, id=pa.array(range(len(rows)), pa.int32()))
    table = predictions(output, "a.parquet")
    assert table["error"].to_pylist() == ["tokens are null", "no tokens", "tokens are null"][: len(rows)]
    assert table["prediction"].null_count == table["probabilities"].null_count == len(rows)
    assert attention(output, "a.parquet").to_pylist() == [
        {"row": i, "id": i, "weights": None} for i in range(len(rows))
    ]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([2**63, 1, 1], pa.uint64()),
        pa.array(["a", None, "a"], pa.string_view()),
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array([0, 1, None], pa.timestamp("us", "UTC")),
        pa.array([b"ab", b"cd", b"ef"], pa.binary(2)),
    ],
    ids=lambda ids: str(ids.type),
)
def test_id_of_any_scalar_type_is_carried_through(ids: pa.Array, output: Output, scored: Scored) -> None:
    scored(TOKENS[: len(ids)], id=ids)
    for table in (predictions(output, "a.parquet"), attention(output, "a.parquet")):
        assert table["id"].to_pylist() == ids.to_pylist()
        assert table["id"].type == ids.type


def test_rows_without_ids_are_known_by_their_position_in_the_file(output: Output, scored: Scored) -> None:
    shards = scored([b"x"] * 10, OutputSettings(limits=ShardLimits(rows=4)), chunk_rows=1, row_group_size=2)
    for column in ("row", "id"):
        assert [predictions(output, shard.name)[column].to_pylist() for shard in shards] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
            [8, 9],
        ]


def test_files_of_version_1_are_as_those_of_version_2_without_the_column_row(output: Output, scored: Scored) -> None:
    def files() -> list[pa.Table]:
        tables = [predictions(output, "a.parquet"), attention(output, "a.parquet")]
        return [
            table.replace_schema_metadata({b"classes": (table.schema.metadata or {}).get(b"classes", b"")})
            for table in tables
        ]

    columns = Columns(keep=("x",))
    scored(settings=OutputSettings(columns=columns), x=list("abcdef"))
    new = files()
    shutil.rmtree(output.root.path)
    scored(settings=OutputSettings(columns=columns, format_version=1), x=list("abcdef"))
    assert files() == [table.drop_columns("row") for table in new]
    stored = pq.read_metadata(output.predictions("a.parquet").path)
    assert stored.schema.column(0).name == "id"


def test_rows_take_next_to_no_room(output: Output, scored: Scored) -> None:
    scored([b"x"] * 100_000)
    for place in (output.predictions("a.parquet"), output.attention("a.parquet")):
        group = pq.read_metadata(place.path).row_group(0)
        assert group.column(0).path_in_schema == "row"
        assert group.column(0).total_compressed_size < group.num_rows / 100
        assert (group.column(0).statistics.min, group.column(0).statistics.max) == (0, group.num_rows - 1)


@dataclass
class Writing:
    """Writes the rows of TOKENS into the only shard, as often as it is told to."""

    output: Output
    shard: Shard
    checkpoint: CheckpointId
    table = pa.table({"tokens": TOKENS})
    rows = decode_tokens(table["tokens"], TokenRules())
    probabilities = np.full((4, 3), 1 / 3, np.float32)
    attention = np.zeros(15, np.float32)

    def run(self, times: int, error: Exception | None = None) -> None:
        with write_shard(self.output, self.shard, self.checkpoint, CLASSES) as writer:
            for _ in range(times):
                writer.write(self.table, self.rows, self.probabilities, self.attention)
            if error:
                raise error


@pytest.fixture
def writing(data: Path, output: Output, checkpoint: CheckpointId, put: Callable[..., Path]) -> Writing:
    put("a.parquet", TOKENS)
    (shard,) = plan_output(str(data), output).shards
    return Writing(output, shard, checkpoint)


@pytest.mark.parametrize("num_writes", [0, 1])
@pytest.mark.parametrize("scored_before", [False, True])
def test_exception_in_the_block_leaves_what_was_there(num_writes: int, scored_before: bool, writing: Writing) -> None:
    if scored_before:
        writing.run(1)
    before = files_below(Path(writing.output.root.path))
    with pytest.raises(RuntimeError, match="stop"):
        writing.run(num_writes, RuntimeError("stop"))
    assert files_below(Path(writing.output.root.path)) == before
    assert bool(before) == scored_before


@pytest.mark.parametrize("times", [0, 2])
def test_fewer_or_more_rows_than_the_shard_has_leave_no_file(times: int, writing: Writing) -> None:
    with pytest.raises(FileError, match=rf"^{6 * times} of its 6 rows were scored"):
        writing.run(times)
    assert files_below(Path(writing.output.root.path)) == {}


@pytest.mark.parametrize(
    ("num_rows", "num_classes", "num_tokens"), [(3, 3, 15), (5, 3, 15), (4, 2, 15), (4, 3, 14), (4, 3, 16)]
)
def test_scores_that_do_not_fit_the_rows_are_never_written(
    num_rows: int, num_classes: int, num_tokens: int, writing: Writing
) -> None:
    writing.probabilities = np.full((num_rows, num_classes), 0.5, np.float32)
    writing.attention = np.zeros(num_tokens, np.float32)
    with pytest.raises(AssertionError):
        writing.run(1)
    assert files_below(Path(writing.output.root.path)) == {}


@pytest.mark.parametrize("fails", ["attention", "predictions"])
def test_attention_is_in_place_before_the_predictions(
    fails: str, output: Output, scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.replace

    def stop_at(source: Path, target: Path) -> None:
        if f"/{fails}/" in str(target):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", stop_at)
    with pytest.raises(OSError, match="No space left on device"):
        scored()
    left = ["attention/a.parquet"] if fails == "predictions" else []
    assert sorted(files_below(Path(output.root.path))) == ["README.md", "_dataset.json", *left]


@pytest.fixture
def partitioned(data: Path, output: Output, put: Callable[..., Path], score: Callable[..., object]) -> Output:
    put("date=2026-11-01/a.parquet", TOKENS, id=[1, 2, 3, 4, 5, 6])
    put("date=2026-11-02/a.parquet", [b"zz", None], id=[7, 8])
    score(data, output)
    return output


def test_duckdb_reads_the_output(partitioned: Output) -> None:
    place = f"{partitioned.root.path}/predictions/**/*.parquet"
    with duckdb.connect() as connection:
        counts = connection.sql(f"SELECT prediction, count(*) FROM '{place}' GROUP BY 1").fetchall()
        types = dict(connection.sql(f"DESCRIBE SELECT * FROM '{place}'").project("column_name, column_type").fetchall())
        days = connection.sql(f"SELECT date, count(error) FROM '{place}' GROUP BY 1 ORDER BY 1").fetchall()
        lengths = connection.sql(
            f"SELECT len(weights) = num_tokens FROM '{place}' JOIN "
            f"'{partitioned.root.path}/attention/**/*.parquet' USING (id) WHERE error IS NULL"
        ).fetchall()
    assert sum(count for _, count in counts) == 8
    assert {name for name, _ in counts} <= {*CLASSES, None}
    assert types | {"date": "", "probabilities": types["probabilities"][:5]} == {
        "row": "BIGINT",
        "id": "BIGINT",
        "prediction": "VARCHAR",
        "score": "FLOAT",
        "probabilities": "FLOAT",
        "num_tokens": "BIGINT",
        "truncated": "BOOLEAN",
        "error": "VARCHAR",
        "checkpoint": "VARCHAR",
        "date": "",
    }
    assert [count for _, count in days] == [2, 1]
    assert lengths == [(True,)] * 5


def test_polars_reads_the_output(partitioned: Output) -> None:
    frame = pl.read_parquet(f"{partitioned.root.path}/predictions/", hive_partitioning=True)
    assert frame.height == 8
    assert frame.schema["probabilities"] == pl.Array(pl.Float32, 3)
    assert frame.schema["score"] == pl.Float32
    assert frame.schema["prediction"] == pl.String
    assert frame.filter(pl.col("error").is_null()).select(pl.col("probabilities").arr.sum()).to_series().to_list() == (
        pytest.approx([1.0] * 5)
    )
    weights = pl.read_parquet(f"{partitioned.root.path}/attention/date=2026-11-01/a.parquet")
    assert weights.schema == {"row": pl.Int64, "id": pl.Int64, "weights": pl.List(pl.Float32)}


@pytest.mark.parametrize("name", ["o[1]", "a*b", "q?", "a b%3A#"])
def test_polars_reads_an_output_of_any_name(name: str, partitioned: Output, tmp_path: Path) -> None:
    folder = shutil.copytree(partitioned.root.path, tmp_path / name)
    expected = open_predictions(partitioned.root.path).collect()
    for place in (str(folder), folder.as_uri()):
        assert open_predictions(place).collect().equals(expected)
        assert open_attention(place).collect().height == expected.height


def test_pandas_reads_the_output(partitioned: Output) -> None:
    frame = pd.read_parquet(f"{partitioned.root.path}/predictions")
    assert frame["id"].tolist() == list(range(1, 9))
    assert frame["score"].dtype == np.float32
    assert frame["truncated"].dtype == bool
    assert frame["error"].isna().sum() == 5
    assert frame.loc[0, "probabilities"].dtype == np.float32


# Few distinct values, so that ties are common.
ROWS = st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=6), max_size=6)


@given(ROWS, st.integers(1, 7))
def test_top_weights_is_each_row_sorted_and_cut(rows: list[list[float]], count: int) -> None:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    weights = np.array([weight for row in rows for weight in row], np.float32)
    positions, kept, kept_offsets = top_weights(weights, offsets, count)
    expected = [sorted(enumerate(row), key=lambda pair: (-pair[1], pair[0]))[:count] for row in rows]
    assert kept_offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    assert positions.tolist() == [position for row in expected for position, _ in row]
    assert kept.tolist() == [weight for row in expected for _, weight in row]
    assert positions.dtype == np.int32
    assert kept.dtype == np.float32


def test_a_very_long_row_among_many_short_ones() -> None:
    offsets = np.concatenate(([0], np.cumsum([1] * 5000 + [1 << 21] + [2] * 5000))).astype(np.int64)
    weights = np.random.default_rng(0).random(offsets[-1], np.float32)
    positions, kept, kept_offsets = top_weights(weights, offsets, 2)
    assert kept_offsets[-1] == 5000 + 2 + 10_000
    assert positions[5000] == weights[5000 : 5000 + (1 << 21)].argmax()
    pairs = weights[offsets[5001] :].reshape(-1, 2)
    assert positions[5002:].reshape(-1, 2)[:, 0].tolist() == pairs.argmax(1).tolist()
    assert kept[5002:].reshape(-1, 2).tolist() == (-np.sort(-pairs, axis=1)).tolist()


def test_weights_that_are_not_numbers_stay_in_their_rows() -> None:
    weights = np.array([0.5, np.nan, 0.25, 0.75], np.float32)
    positions, _, offsets = top_weights(weights, np.array([0, 2, 4]), 1)
    assert positions.tolist() == [1, 1]
    assert offsets.tolist() == [0, 1, 2]


def test_ids_and_kept_columns_of_json_and_uuid_are_carried_through(output: Output, scored: Scored) -> None:
    texts = pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(['{"a": 1}', "[]"]))
    ids = pa.array([bytes(range(16)), None], pa.uuid())
    scored(texts, OutputSettings(columns=Columns(keep=("note",))), id=ids, note=texts)
    table = predictions(output, "a.parquet")
    assert (table["num_tokens"].to_pylist(), table["note"].to_pylist()) == ([8, 2], ['{"a": 1}', "[]"])
    assert table["id"][1].as_py() is None
