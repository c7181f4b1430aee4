"""Labelled rows for training: classes in order, sides by group or content, and what was left out counted."""

import math
from collections.abc import Callable, Iterable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import SourceError
from storage.input.partitions import DateRange
from storage.input.tokens import TokenRules
from storage.labelled.source import LabelledRows, read_labelled
from storage.labelled.split import TEST, TRAIN, VALIDATION, hash_keys, splits_of_hashes
from storage.labelled.vocabulary import Outside

TOKENS = [b"%d" % number * 3 for number in range(200)]

Put = Callable[..., Path]


def text(*values: bytes | None) -> pa.Array:
    """An array of strings that are perhaps not UTF-8, as other writers may make them."""
    stored = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(stored), stored.buffers())


def sides_of(keys: Iterable[bytes]) -> list[int]:
    """On which side rows of these keys are."""
    return list(splits_of_hashes(hash_keys(keys)).tolist())


def sequences(rows: LabelledRows) -> list[bytes]:
    """The tokens of each row, in the order of reading, from the sides that they are kept in."""
    contents = [values.tobytes() for values in rows.values]
    found = []
    for side, length in zip(rows.splits.tolist(), rows.lengths.tolist(), strict=True):
        found.append(contents[side][:length])
        contents[side] = contents[side][length:]
    assert contents == [b"", b"", b""]
    return found


def test_rows_of_all_files_in_order_with_their_labels(put: Put, data: Path) -> None:
    put("b.parquet", [b"3"], label=["x"])
    put("a.parquet", [b"1", b"22"], label=["y", "x"], row_group_size=1)
    rows = read_labelled(str(data))
    assert sequences(rows) == [b"1", b"22", b"3"]
    assert rows.classes == ("x", "y")
    assert rows.labels.tolist() == [1, 0, 0]
    assert (len(rows), rows.num_files, rows.num_unlabelled, rows.num_unusable) == (3, 2, 0, 0)


def test_strings_are_ordered_by_code_point_and_integers_by_value(put: Put, data: Path) -> None:
    words = ["b", "a", "é", "B", "aa"]
    put("a.parquet", TOKENS[:5], label=words, number=pa.array([10, 9, -1, 100, 2], pa.int16()))
    rows = read_labelled(str(data))
    assert rows.classes == ("B", "a", "aa", "b", "é")
    assert [rows.classes[code] for code in rows.labels] == words
    rows = read_labelled(str(data), label_column="number")
    assert rows.classes == ("-1", "2", "9", "10", "100")
    assert [rows.classes[code] for code in rows.labels] == ["10", "9", "-1", "100", "2"]


GROUPS = [f"g{number // 4}".encode() for number in range(200)]


@pytest.mark.parametrize(
    ("group", "keys", "split_by"),
    [
        ([group.decode() for group in GROUPS], GROUPS, "group"),
        (None, TOKENS, "content"),
        (["g", None], [b"g", TOKENS[1]], "group and content"),
        ([7, 8], [b"7", b"8"], "group"),
        (pa.array([b"\xff", b"\xfe"]), [b"\xff", b"\xfe"], "group"),
        (text(b"\xff", b"g"), [b"\xff", b"g"], "group"),
        (pa.array(["g", "h"]).dictionary_encode(), [b"g", b"h"], "group"),
        ([[1], [2]], [b"[1]", b"[2]"], "group"),
        ([7.0, None, 0.5, math.nan], [b"7", TOKENS[1], b"0.5", b"nan"], "group and content"),
        ([Decimal(f"{number}.00") for number in range(20)], [b"%d" % number for number in range(20)], "group"),
        ([datetime(2026, 11, day) for day in range(1, 21)], [b"2026-11-%02d" % day for day in range(1, 21)], "group"),
        ([datetime(2026, 11, 1, 7)] * 2, [b"2026-11-01 07:00:00"] * 2, "group"),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_rows_of_a_group_stay_together_and_else_those_of_equal_content(
    group: object, keys: list[bytes], split_by: str, put: Put, data: Path
) -> None:
    for name in "ab":
        columns = {} if group is None else {"group": group}
        put(f"{name}.parquet", TOKENS[: len(keys)], label=["x", "y"] * (len(keys) // 2), **columns)
    rows = read_labelled(str(data))
    assert rows.split_by == split_by
    assert rows.splits.tolist() == sides_of(keys * 2)


def test_groups_from_partitions_are_as_those_of_a_column(put: Put, data: Path) -> None:
    for group in range(40):
        put(f"group={group}/a.parquet", TOKENS[5 * group : 5 * group + 5], label=["x", "y", "x", "y", "x"])
    put("group=__HIVE_DEFAULT_PARTITION__/a.parquet", [b"none"], label=["x"])
    rows = read_labelled(str(data))
    assert rows.split_by == "group and content"
    keys = [place.split("group=")[1].split("/")[0] for place in map(rows.place, range(len(rows)))]
    keys = [{"__HIVE_DEFAULT_PARTITION__": "none"}.get(key, key) for key in keys]
    assert rows.splits.tolist() == sides_of(key.encode() for key in keys)


def test_named_group_column_that_is_nowhere_is_refused_and_a_near_miss_is_noted(put: Put, data: Path) -> None:
    put("a.parquet", TOKENS, label=["x", "y"] * 100, Group=["g"] * 200)
    with pytest.raises(SourceError, match=f"^No file of the source {data} has a column or partition 'gruop'"):
        read_labelled(str(data), group_column="gruop")
    assert read_labelled(str(data)).overlooked_group == "Group"
    assert read_labelled(str(data), group_column="Group").split_by == "group"


@pytest.mark.parametrize("name", ["label", "group"])
def test_column_that_is_there_twice_is_refused(name: str, put: Put, data: Path) -> None:
    table = pq.ParquetFile(put("a.parquet", TOKENS, label=["x", "y"] * 100, group=["g"] * 200)).read()
    pq.write_table(table.append_column(name, table[name]), data / "a.parquet")
    with pytest.raises(SourceError, match=rf"column '{name}' \({name}_column\) stands 2 times in the schema"):
        read_labelled(str(data))


def test_label_and_group_inside_structs(put: Put, data: Path) -> None:
    events = [{"kind": "x", "by": "g"}, None, {"kind": "y", "by": "h"}, {"kind": None, "by": "h"}]
    put("a.parquet", TOKENS[:4], event=events)
    rows = read_labelled(str(data), label_column="event.kind", group_column="event.by")
    assert (rows.classes, rows.labels.tolist(), rows.split_by) == (("x", "y"), [0, 1], "group")
    assert rows.splits.tolist() == sides_of([b"g", b"h"])


def test_what_other_files_hold_does_not_move_a_row_to_another_side(put: Put, data: Path) -> None:
    grouped = put("a.parquet", TOKENS[:50], label=["x", "y"] * 25, group=[f"g{number // 4}" for number in range(50)])
    put("b.parquet", TOKENS[50:], label=["x", "y"] * 75)
    rows, alone = read_labelled(str(data)), read_labelled(str(grouped))
    assert (rows.split_by, alone.split_by) == ("group and content", "group")
    assert rows.splits[:50].tolist() == alone.splits.tolist()
    assert rows.splits[50:].tolist() == sides_of(TOKENS[50:])


def test_content_has_the_same_side_as_bytes_and_as_integers(put: Put, data: Path) -> None:
    put("a.parquet", TOKENS, label=["x", "y"] * 100)
    put("b.parquet", pa.array([list(tokens) for tokens in TOKENS]), label=["x", "y"] * 100)
    splits = read_labelled(str(data)).splits
    assert splits[:200].tolist() == splits[200:].tolist()


def test_side_gives_the_rows_of_one_side(put: Put, data: Path) -> None:
    put("a.parquet", TOKENS, label=["x", "y"] * 100)
    rows = read_labelled(str(data))
    values, offsets, labels = rows.side(VALIDATION)
    chosen = [number for number, side in enumerate(rows.splits.tolist()) if side == VALIDATION]
    assert values.tobytes() == b"".join(TOKENS[number] for number in chosen)
    assert offsets.tolist()[1:] == [sum(len(TOKENS[i]) for i in chosen[: n + 1]) for n in range(len(chosen))]
    assert labels.tolist() == [number % 2 for number in chosen]
    assert offsets.dtype == labels.dtype == "int64"


def test_labels_from_partitions(put: Put, data: Path) -> None:
    put("label=very%20good/a.parquet", [b"1"])
    put("label=bad/a.parquet", [b"2", b"3"])
    put("label=__HIVE_DEFAULT_PARTITION__/a.parquet", [b"4"])
    rows = read_labelled(str(data))
    assert (rows.classes, rows.labels.tolist(), rows.num_unlabelled) == (("bad", "very good"), [0, 0, 1], 1)


@pytest.mark.parametrize(
    ("files", "classes", "label_type"),
    [
        ({"a": ["y", "x"]}, ("x", "y"), "string"),
        ({"a": pa.array(["x", "z"], pa.large_string()), "b": ["y"]}, ("x", "y", "z"), "string"),
        ({"a": pa.array(["x", "z"], pa.string_view()), "b": ["y"]}, ("x", "y", "z"), "string"),
        ({"a": pa.array(["x", "z"]).dictionary_encode(), "b": ["y"]}, ("x", "y", "z"), "string"),
        ({"a": pa.array([7], pa.int8()), "b": pa.array([3], pa.uint32())}, ("3", "7"), "int64"),
        ({"a": pa.array([10, 9], pa.uint64())}, ("9", "10"), "int64"),
        ({"a": [True, False]}, ("false", "true"), "bool"),
        ({"label=10/a": None, "label=-9/a": None}, ("-9", "10"), "int64"),
        ({"label=10/a": None, "label=09/a": None}, ("09", "10"), "string"),
        ({"label=10/a": None, "b": [9]}, ("9", "10"), "int64"),
        ({"label=10/a": None, "b": ["9"]}, ("10", "9"), "string"),
        ({"label=true/a": None, "b": [False]}, ("false", "true"), "bool"),
        ({"label=10/a": None, "label=9223372036854775808/a": None}, ("10", "9223372036854775808"), "string"),
        ({"a": [2, 1], "b": pa.nulls(2), "c": pa.nulls(2, pa.string())}, ("1", "2"), "int64"),
    ],
)
def test_classes_have_the_type_of_the_labels(
    files: dict[str, object], classes: tuple[str, ...], label_type: str, put: Put, data: Path
) -> None:
    for name, labels in files.items():
        num_rows = 2 if labels is None else len(labels)  # type: ignore[arg-type]
        put(f"{name}.parquet", TOKENS[:num_rows], **({} if labels is None else {"label": labels}))
    rows = read_labelled(str(data))
    assert (rows.classes, rows.label_type) == (classes, label_type)


def test_rows_without_label_or_tokens_are_counted_apart(put: Put, data: Path) -> None:
    put(
        "a.parquet",
        [b"1", b"2", b"", None, b"5", None],
        label=["x", None, "x", "y", "y", None],
        group=["g", "h", "i", "j", "k", "l"],
    )
    rows = read_labelled(str(data))
    assert sequences(rows) == [b"1", b"5"]
    assert (rows.num_unlabelled, rows.num_unusable) == (2, 2)
    assert rows.splits.tolist() == sides_of([b"g", b"k"])


def test_class_that_only_unusable_rows_have_is_none(put: Put, data: Path) -> None:
    put("a.parquet", [b"1", b"2", b""], label=["x", "y", "z"])
    assert read_labelled(str(data)).classes == ("x", "y")


def test_rules_apply(put: Put, data: Path) -> None:
    put("a.parquet", [b"\x01\x02\x03", b"\x09", b"\x01"], label=["x", "y", "y"])
    rows = read_labelled(str(data), rules=TokenRules(8, max_tokens=2))
    assert sequences(rows) == [b"\x01\x02", b"\x01"]
    assert rows.num_unusable == 1


def test_other_column_names(put: Put, data: Path) -> None:
    put("a.parquet", [b"0", b"0"], body=["a", "b"], kind=[1, 2], author=["g", "g"])
    rows = read_labelled(str(data), tokens_column="body", label_column="kind", group_column="author")
    assert (sequences(rows), rows.classes, rows.split_by) == ([b"a", b"b"], ("1", "2"), "group")


def refusal(source: Path) -> str:
    with pytest.raises(SourceError) as refused:
        read_labelled(str(source))
    return str(refused.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"label": ["x", "x"]},
            "The source {data} has only 'x' in column 'label'; training needs two classes or more.",
        ),
        ({"label": pa.nulls(2, pa.string())}, "The source {data} has no label at all in column 'label'"),
        ({"kind": ["x", "y"]}, "{data}/a.parquet: column 'label' (label"),
        (
            {"label": [0.5, 1.5]},
            "{data}/a.parquet: column 'label' (label) has type double; a label must be a string, an integer or a bool.",
        ),
        (
            {"label": ["x", "y"], "group": pa.array([0, 2**62], pa.timestamp("us"))},
            "{data}/a.parquet: column 'group' (group_column) has a value of type timestamp[us] in row 1",
        ),
    ],
)
def test_source_that_can_not_be_trained_on_is_refused_with_its_file_and_column(
    columns: dict[str, object], message: str, put: Put, data: Path
) -> None:
    put("a.parquet", TOKENS[:2], **columns)
    assert refusal(data).startswith(message.format(data=data))
    if "kind" in columns:
        assert refusal(data).endswith(" is missing; the file has: tokens (binary), kind (string).")


@pytest.mark.parametrize("other", ["b.parquet", "label=x/b.parquet"])
def test_labels_that_are_numbers_here_and_words_there_are_refused(other: str, put: Put, data: Path) -> None:
    put("a.parquet", TOKENS[:1], label=[1])
    words = put(other, TOKENS[:1], **({} if "=" in other else {"label": ["x"]}))
    message = refusal(data)
    assert message.startswith("The label column holds integers in some files and strings in others")
    assert message.endswith(f"The first such files are {data}/a.parquet and {words}.")


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (text(b"x", None, b"y", b"\xff"), r"is not UTF-8: b'\xff'"),
        (text(b"x", None, b"y", b"\xff").dictionary_encode(), r"is not UTF-8: b'\xff'"),
        (pa.array([1, None, 2, 2**63], pa.uint64()), "is beyond int64: 9223372036854775808"),
    ],
    ids=lambda each: str(getattr(each, "type", "")),
)
def test_label_that_can_be_none_is_refused_with_file_column_and_row(
    labels: pa.Array, what: str, put: Put, data: Path
) -> None:
    put("a.parquet", TOKENS[:2], label=labels[:2])
    path = put("b.parquet", TOKENS[:4], label=labels)
    assert (
        refusal(data) == f"{path}: column 'label' (label) has a label in row 3 that {what}; correct it or make it null."
    )


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.null()), pa.large_list(pa.null()), pa.list_(pa.null(), 2), pa.null()], ids=str
)
def test_file_without_any_token_has_rows_that_cannot_be_scored(kind: pa.DataType, put: Put, data: Path) -> None:
    put("a.parquet", TOKENS[:2], label=["x", "y"])
    put("b.parquet", pa.array([None, None if pa.types.is_null(kind) else [None, None]], kind), label=["x", "y"])
    rows = read_labelled(str(data))
    assert (len(rows), rows.num_unusable) == (2, 2)


def test_rows_outside_the_vocabulary_are_counted_and_most_of_them_are_refused(put: Put, data: Path) -> None:
    put("a.parquet", pa.array([[1], [2], [300, 1], [999, None], None]), label=["x", "y", "x", "x", "y"])
    put("b.parquet", pa.array([[3], [400], [70_000]]), label=["x", "y", None])
    rows = read_labelled(str(data))
    assert (len(rows), rows.num_unusable, rows.outside) == (3, 4, Outside(2, 1, 400))
    wider = read_labelled(str(data), rules=TokenRules(500))
    assert (len(wider), wider.outside) == (5, None)
    put("c.parquet", pa.array([[300]] * 6), label=["x"] * 6)
    message = f"8 of the 13 labelled rows of the source {data} have token ids outside 0..255 (the largest is 400)"
    assert (
        refusal(data)
        == f"{message}, which can't be trained on. --num-embeddings 402 makes a network that knows them all."
    )
    put("c.parquet", pa.array([[65_535]] * 6), label=["x"] * 6)
    assert refusal(data).endswith("--num-embeddings may be up to 65536; number the tokens anew, the rare ones alike.")
    put("c.parquet", pa.array([[-1]] * 6), label=["x"] * 6)
    assert refusal(data).endswith(
        "(the least is -1), which can't be trained on. Token ids begin with 0; number them anew."
    )


def test_content_has_the_same_side_in_every_vocabulary(put: Put, data: Path) -> None:
    put("a.parquet", pa.array([list(tokens) for tokens in TOKENS]), label=["x", "y"] * 100)
    put("b.parquet", pa.array([[300, 1], [300, 2]]), label=["x", "y"])
    narrow, wide = read_labelled(str(data)), read_labelled(str(data), rules=TokenRules(65_535))
    assert wide.contents[:-2].tolist() == narrow.contents.tolist()
    assert len(set(wide.contents.tolist())) == 202


@pytest.mark.parametrize("name", ["label", "group"])
def test_column_that_differs_from_its_partition_is_refused(name: str, put: Put, data: Path) -> None:
    columns = {"label": ["x", "y"], "group": ["1", "1"]}
    put("group=1/a.parquet", TOKENS[:2], **columns)
    assert read_labelled(str(data)).split_by == "group"
    path = put(f"{name}=z/b.parquet", TOKENS[:2], **columns)
    assert refusal(data).startswith(f"{path}: column '{name}' has another value in row 0 than the partition {name}=z ")


def test_unreadable_files_are_refused_with_the_first_and_how_many_more(put: Put, data: Path) -> None:
    put("a.parquet", TOKENS[:2], label=["x", "y"])
    for name in ("b", "c", "d"):
        (data / f"{name}.parquet").write_text("no Parquet")
    message = refusal(data)
    assert message.startswith(f"{data}/b.parquet: not a whole Parquet file")
    assert message.endswith("(2 more files can't be read either)")


def test_several_sources_are_read_in_order_and_no_file_twice(put: Put, data: Path) -> None:
    first = put("one/a.parquet", [b"1"], label=["x"])
    put("two/b.parquet", [b"2", b"3"], label=["y", "y"])
    rows = read_labelled([str(data / "one"), str(data / "two"), str(first), str(data)])
    assert sequences(rows) == [b"1", b"2", b"3"]
    assert rows.files == (str(first), str(data / "two/b.parquet"))


def test_rows_are_named_by_their_file_and_position_there(put: Put, data: Path) -> None:
    put("a.parquet", [b"1", None, b"3"], label=["x", "y", "y"], row_group_size=1)
    put("b.parquet", [b"4", b"5"], label=[None, "x"])
    rows = read_labelled(str(data))
    assert [rows.place(row) for row in range(3)] == [
        f"{data}/a.parquet row 0",
        f"{data}/a.parquet row 2",
        f"{data}/b.parquet row 1",
    ]


def test_only_dates_of_the_range_are_read(put: Put, data: Path) -> None:
    for day in range(1, 6):
        put(f"date=2026-11-0{day}/a.parquet", [b"%d" % day] * 2, label=["x", "y"])
    put("date=__HIVE_DEFAULT_PARTITION__/a.parquet", [b"0"], label=["x"])
    late = read_labelled(str(data), dates=DateRange(window="2d"))
    assert (sequences(late), late.since) == ([b"4", b"4", b"5", b"5"], "2026-11-04")
    assert read_labelled(str(data)).since is None
    assert len(read_labelled(str(data))) == 11


def test_range_without_rows_is_refused(put: Put, data: Path) -> None:
    put("date=2026-11-01/a.parquet", [b"1"], label=["x"])
    with pytest.raises(SourceError, match=rf"^The source {data} has no file from 2027-01-01 on\. Check the dates\.$"):
        read_labelled(str(data), dates=DateRange(since=date(2027, 1, 1)))


def test_more_tokens_than_memory_may_hold_give_the_same_rows(put: Put, data: Path) -> None:
    put("a.parquet", TOKENS, label=["x", "y"] * 100, row_group_size=7)
    put("b.parquet", pa.array([list(tokens) for tokens in TOKENS]), label=["x", "z"] * 100)
    whole, spilled = read_labelled(str(data)), read_labelled(str(data), memory_bytes=16)
    assert not any(isinstance(values.base, np.memmap) for values in whole.values)
    assert all(isinstance(values.base, np.memmap) for values in spilled.values)
    for side in (TRAIN, VALIDATION, TEST):
        for one, other in zip(whole.side(side), spilled.side(side), strict=True):
            assert one.tolist() == other.tolist()


@pytest.mark.parametrize("memory_bytes", [16, 1 << 20])
def test_classes_with_too_few_rows_to_train_on_are_left_out_and_counted(
    memory_bytes: int, put: Put, data: Path
) -> None:
    splits = splits_of_hashes(hash_keys(TOKENS))
    to_train_on, to_test_on = int(np.flatnonzero(splits == TRAIN)[9]), int(np.flatnonzero(splits == TEST)[1])
    labels = ["a" if number % 2 else "b" for number in range(200)]
    labels[to_train_on], labels[to_test_on] = "c", "d"
    put("a.parquet", TOKENS, label=labels)
    rows = read_labelled(str(data), min_class_rows=1, memory_bytes=memory_bytes)
    assert (rows.classes, rows.left_out) == (("a", "b", "c"), {"d": 1})
    rows = read_labelled(str(data), min_class_rows=2, memory_bytes=memory_bytes)
    assert (rows.classes, rows.left_out) == (("a", "b"), {"c": 1, "d": 1})
    kept = [number for number in range(200) if number not in (to_train_on, to_test_on)]
    assert sequences(rows) == [TOKENS[number] for number in kept]
    assert [rows.classes[code] for code in rows.labels] == [labels[number] for number in kept]
    assert rows.positions.tolist() == kept


def test_source_in_which_too_few_classes_are_left_is_refused_and_says_which(put: Put, data: Path) -> None:
    put("a.parquet", TOKENS[4:8], label=["x", "x", "x", "y"])
    with pytest.raises(
        SourceError, match=r"has only 'x' in column 'label' \(y: too few rows to train on\); training needs"
    ):
        read_labelled(str(data), min_class_rows=2)


def test_duplicates_across_groups_and_conflicting_labels_are_counted(put: Put, data: Path) -> None:
    groups = [f"g{number}" for number in range(200)]
    splits = splits_of_hashes(hash_keys(group.encode() for group in groups))
    tests, trains = np.flatnonzero(splits == TEST), np.flatnonzero(splits == TRAIN)
    tokens, labels = list(TOKENS), ["x", "y"] * 100
    tokens[tests[0]] = tokens[trains[0]]  # a test row that training has met
    labels[tests[0]] = labels[trains[0]]
    tokens[trains[1]] = tokens[trains[2]]  # the same tokens with two labels
    labels[trains[1]], labels[trains[2]] = "x", "y"
    put("a.parquet", tokens, label=labels, group=groups)
    found = read_labelled(str(data)).duplicates()
    assert (found.num_rows, found.num_across_sides, found.num_test_rows_seen) == (2, 1, 1)
    assert (found.num_conflicting, found.num_conflicting_rows) == (1, 2)
