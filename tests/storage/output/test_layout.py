"""What an output records of itself, and what it refuses to mix."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import OutputError
from storage.input.columns import Columns
from storage.input.shards import Shard, ShardLimits
from storage.locations import Location
from storage.output.layout import AttentionSaving, Output, OutputSettings, Stamp, read_stamp
from storage.registry.checkpoints import CheckpointId


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def output(folder: Path, **settings: object) -> Output:
    return Output(Location.parse(folder), OutputSettings(**settings))  # type: ignore[arg-type]


def test_record_names_the_settings_as_users_do(folder: Path) -> None:
    output(folder).prepare("/data")
    assert json.loads((folder / "_dataset.json").read_text()) == {
        "format": "attnlstm",
        "format_version": 2,
        "source": "/data",
        "tokens_column": "tokens",
        "id_column": "id",
        "keep": [],
        "save_attention": "full",
        "max_tokens": None,
        "long_rows": "truncate",
        "shard_rows": 1_000_000,
        "shard_bytes": 256 << 20,
        "chunk_bytes": 4 << 20,
    }


def test_same_settings_again_are_fine_and_leave_the_record_alone(folder: Path) -> None:
    output(folder).prepare("/data")
    before = (folder / "_dataset.json").read_bytes()
    output(folder).check("/data")
    output(folder).prepare("/data")
    assert (folder / "_dataset.json").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"columns": Columns(tokens="body")}, "tokens_column: 'tokens' there, 'body' asked for"),
        ({"columns": Columns(id="name")}, "id_column: 'id' there, 'name' asked for"),
        ({"columns": Columns(keep=("label",))}, "keep: [] there, ['label'] asked for"),
        ({"limits": ShardLimits(rows=5)}, "shard_rows: 1000000 there, 5 asked for"),
        ({"limits": ShardLimits(bytes=5)}, "shard_bytes: 268435456 there, 5 asked for"),
        ({"attention": AttentionSaving("top", 3)}, "save_attention: 'full' there, 'top:3' asked for"),
        ({"max_tokens": 9}, "max_tokens: None there, 9 asked for"),
        ({"chunk_bytes": 9}, "chunk_bytes: 4194304 there, 9 asked for"),
        ({"long_rows": "error"}, "long_rows: 'truncate' there, 'error' asked for"),
    ],
)
def test_each_other_setting_is_refused_by_name(folder: Path, settings: dict[str, object], difference: str) -> None:
    output(folder).prepare("/data")
    before = (folder / "_dataset.json").read_bytes()
    for refused_by in (output(folder, **settings).check, output(folder, **settings).prepare):
        with pytest.raises(OutputError) as refused:
            refused_by("/data")
        assert f"The output {folder} was made differently:\n  {difference}\n" in str(refused.value)
        assert str(refused.value).endswith("Write to another folder, or ask for what is there.")
    assert (folder / "_dataset.json").read_bytes() == before
    assert output(folder, **settings).settings.digest != output(folder).settings.digest


def test_other_source_is_refused_with_the_way_out_for_one_that_moved(folder: Path) -> None:
    output(folder).prepare("/data")
    with pytest.raises(OutputError, match=r"source: '/data' there, '/moved' asked for\n.*only moved, correct `source`"):
        output(folder).check("/moved")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *(
            (damaged, r"_dataset\.json is damaged \(.*\)\. Restore it or write elsewhere\.$")
            for damaged in (b"", b"{", b'{"format": "attn', b"\xff\xfe\x00", b"PAR1")
        ),
        *(
            (other, r"_dataset\.json does not describe an attnlstm output")
            for other in (b"[]", b"{}", b'{"format": "other"}')
        ),
        (
            b'{"format": "attnlstm", "format_version": 3}',
            r"has format version 3, and this attnlstm knows 1 and 2\. Update",
        ),
        (None, r"has predictions but no _dataset\.json, so what made them can't be told"),
    ],
)
def test_what_is_no_whole_record_of_ours_is_refused(folder: Path, content: bytes | None, message: str) -> None:
    (folder / "predictions").mkdir(parents=True)
    if content is not None:
        (folder / "_dataset.json").write_bytes(content)
    with pytest.raises(OutputError, match=message):
        output(folder).check("/data")


def test_file_as_output_is_refused(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(OutputError, match=r"out is a file; an output is a folder\.$"):
        output(folder).check("/data")


def test_new_or_empty_folder_is_fine_and_check_makes_nothing(folder: Path) -> None:
    output(folder).check("/data")
    assert not folder.exists()
    folder.mkdir()
    output(folder).check("/data")
    assert list(folder.iterdir()) == []


def test_existing_output_is_as_it_was_made(folder: Path) -> None:
    assert Output.existing(Location.parse(folder)) is None
    made = output(folder, columns=Columns(keep=("label",)), max_tokens=7).prepare("/data", [{"id": pa.uuid()}])
    assert made.types == {"id": pa.uuid()}
    assert Output.existing(Location.parse(folder)) == made
    (folder / "_dataset.json").write_text("")
    with pytest.raises(OutputError, match="is damaged"):
        Output.existing(Location.parse(folder))


def test_settings_come_back_whole_from_their_record() -> None:
    default = OutputSettings()
    other = OutputSettings(
        columns=Columns("body", "name", ("label", "group")),
        limits=ShardLimits(rows=5, bytes=7),
        attention=AttentionSaving("top", 3),
        max_tokens=11,
        long_rows="error",
        chunk_bytes=13,
    )
    assert not [name for name, value in other.record().items() if value == default.record()[name]]
    assert OutputSettings.from_record(json.loads(json.dumps(other.record()))) == other
    assert OutputSettings.from_record({}) == default
    assert OutputSettings.from_record({"keep": ["label"]}) == OutputSettings(columns=Columns(keep=("label",)))


NEW = {**OutputSettings().record(), "label_column": None}


def test_opened_output_is_as_recorded_or_as_said_or_as_a_new_one_is(folder: Path) -> None:
    place = Location.parse(folder)
    assert Output.open(place, {}, NEW).settings == OutputSettings()
    said = {"keep": ["a"], "label_column": "b", "max_tokens": 9}
    made = Output.open(place, said, NEW)
    assert made.settings.record() == NEW | said | {"keep": ["a", "b"]}
    made.prepare("/data")
    assert Output.open(place, {}, NEW) == Output.open(place, said, NEW) == made
    Output.open(place, {}, NEW).check("/data")
    for other in ({"keep": []}, {"label_column": "a"}, {"max_tokens": 8}, {"shard_rows": 1}):
        with pytest.raises(OutputError, match=r"there, .* asked for"):
            Output.open(place, other, NEW)


def test_label_column_may_be_said_later_of_a_kept_column_and_is_recorded_then(folder: Path) -> None:
    """Outputs that were made before label columns were recorded have none in their record."""
    place = Location.parse(folder)
    Output.open(place, {"keep": ["label"]}, NEW).prepare("/data")
    assert "label_column" not in json.loads((folder / "_dataset.json").read_text())
    with pytest.raises(OutputError, match="label_column: None there, 'other' asked for"):
        Output.open(place, {"label_column": "other"}, NEW)
    Output.open(place, {"label_column": "label"}, NEW).prepare("/data")
    assert Output.open(place, {}, NEW).settings.also == {"label_column": "label"}


@pytest.mark.parametrize(
    ("version", "digest"), [(1, "4f78134b32b5e44d039f0119a03fd32d"), (2, "806bf6364a88d723c488d6e9b61441e5")]
)
def test_digest_of_settings_is_the_one_that_files_of_a_version_carry(version: int, digest: str) -> None:
    settings = OutputSettings.from_record({"keep": ["label"], "label_column": "label"}, version)
    assert settings.digest == OutputSettings(columns=Columns(keep=("label",)), format_version=version).digest
    assert OutputSettings.from_record({}, version).digest == digest


def test_output_of_version_1_goes_on_in_its_format_and_a_new_one_is_of_version_2(folder: Path) -> None:
    place = Location.parse(folder)
    assert Output.open(place, {}, NEW).settings.format_version == 2
    output(folder, format_version=1).prepare("/data")
    before = (folder / "_dataset.json").read_bytes()
    made = Output.existing(place)
    assert made
    for old in (made, Output.open(place, {}, NEW)):
        assert old.settings.format_version == 1
        old.prepare("/data")
        assert (folder / "_dataset.json").read_bytes() == before
    with pytest.raises(OutputError, match="keep names row, which the output has as a column of its own"):
        Output.open(place / "new", {"keep": ["row"]}, NEW)


@pytest.mark.parametrize("text", ["full", "none", "top:1", "top:32"])
def test_attention_saving_reads_as_it_is_written(text: str) -> None:
    assert str(AttentionSaving.parse(text)) == text


@pytest.mark.parametrize("text", ["", "top", "top:", "top:0", "top:-1", "top:1.5", "Full", "top:8 "])
def test_other_ways_of_saving_attention_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="attention is saved as full, none or top:K"):
        AttentionSaving.parse(text)


def test_files_lie_under_the_shards_name(folder: Path) -> None:
    assert output(folder).predictions("d=1/a.parquet").path == f"{folder}/predictions/d=1/a.parquet"
    assert output(folder).attention("d=1/a.parquet").path == f"{folder}/attention/d=1/a.parquet"


def test_stamp_of_a_shard_holds_all_that_decides_its_content(folder: Path) -> None:
    shard = Shard("a.parquet", "a-00001-of-00002.parquet", "f" * 32, 1, 2, 30, 40, 50)
    stamp = Stamp.of(shard, CheckpointId("v1", "d" * 32), output(folder).settings)
    assert json.loads(stamp.to_json(num_errors=3)) == {
        "file": "a.parquet",
        "fingerprint": "f" * 32,
        "first_row": 30,
        "num_rows": 40,
        "checkpoint": "v1",
        "checkpoint_digest": "d" * 32,
        "settings_digest": output(folder).settings.digest,
        "format_version": 2,
        "num_errors": 3,
    }


def test_file_of_another_making_has_no_stamp(tmp_path: Path) -> None:
    place = Location.parse(tmp_path / "a.parquet")
    assert read_stamp(place) is None
    place.write_bytes(b"text")
    assert read_stamp(place) is None
    for stamp in (None, "{", "[]", '"x"', "{}", '{"file": "a"}'):
        table = pa.table({"a": [1]}).replace_schema_metadata({"attnlstm": stamp} if stamp else None)
        pq.write_table(table, place.path)
        assert read_stamp(place) is None
