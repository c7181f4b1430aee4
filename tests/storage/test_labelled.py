"""Labelled rows for training: classes in order, sides by group or content, and what was left out counted."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from storage.errors import SourceError
from storage.labelled import LabelledRows, read_labelled
from storage.split import TEST, TRAIN, VALIDATION, assign_splits
from storage.tokens import TokenRules

TOKENS = [b"%d" % number * 3 for number in range(200)]


def sequences(rows: LabelledRows) -> list[bytes]:
    content = rows.values.tobytes()
    return [content[start:end] for start, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]


def test_rows_of_all_files_in_order_with_their_labels(put: Callable[..., Path], data: Path) -> None:
    put("b.parquet", [b"3"], label=["x"])
    put("a.parquet", [b"1", b"22"], label=["y", "x"], row_group_size=1)
    rows = read_labelled(str(data))
    assert sequences(rows) == [b"1", b"22", b"3"]
    assert rows.classes == ("x", "y")
    assert rows.labels.tolist() == [1, 0, 0]
    assert (len(rows), rows.num_files, rows.num_unlabelled, rows.num_unusable) == (3, 2, 0, 0)


def test_strings_are_ordered_by_code_point_and_integers_by_value(put: Callable[..., Path], data: Path) -> None:
    words = ["b", "a", "é", "B", "aa"]
    put("a.parquet", TOKENS[:5], label=words, number=pa.array([10, 9, -1, 100, 2], pa.int16()))
    rows = read_labelled(str(data))
    assert rows.classes == ("B", "a", "aa", "b", "é")
    assert [rows.classes[code] for code in rows.labels] == words
    rows = read_labelled(str(data), label_column="number")
    assert rows.classes == ("-1", "2", "9", "10", "100")
    assert [rows.classes[code] for code in rows.labels] == ["10", "9", "-1", "100", "2"]


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["x", "y", "x"], pa.large_string()),
        pa.array(["x", "y", "x"], pa.string_view()),
        pa.array(["x", "y", "x"]).dictionary_encode(),
    ],
    ids=lambda labels: str(labels.type),
)
def test_every_kind_of_string_labels(labels: pa.Array, put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", TOKENS[:3], label=labels)
    put("b.parquet", TOKENS[:1], label=["y"])
    rows = read_labelled(str(data))
    assert (rows.classes, rows.labels.tolist()) == (("x", "y"), [0, 1, 0, 1])


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.large_list_view(pa.int8()), pa.list_(pa.int8(), 2)], ids=str)
def test_every_kind_of_tokens(kind: pa.DataType, put: Callable[..., Path], data: Path) -> None:
    cells: list[object] = [b"ab", None, b"cd", b"ef"]
    if kind != pa.binary_view():
        cells = [cell and list(cell) for cell in cells]  # type: ignore[call-overload]
    put("a.parquet", pa.array(cells, kind), label=["x", "y", None, "y"])
    rows = read_labelled(str(data))
    assert (sequences(rows), rows.labels.tolist()) == ([b"ab", b"ef"], [0, 1])


def test_files_may_differ_in_integer_width(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", TOKENS[:1], label=pa.array([7], pa.int8()))
    put("b.parquet", TOKENS[:1], label=pa.array([3], pa.uint32()))
    assert read_labelled(str(data)).labels.tolist() == [1, 0]


def test_rows_of_a_group_stay_together(put: Callable[..., Path], data: Path) -> None:
    groups = [f"g{number // 4}" for number in range(200)]
    put("a.parquet", TOKENS, label=["x", "y"] * 100, group=groups)
    rows = read_labelled(str(data))
    assert rows.split_by == "group"
    assert rows.splits.tolist() == assign_splits(group.encode() for group in groups).tolist()
    assert set(rows.splits.tolist()) == {TRAIN, VALIDATION, TEST}


def test_without_groups_equal_content_stays_together(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", TOKENS * 2, label=["x", "y"] * 200)
    rows = read_labelled(str(data))
    assert rows.split_by == "content"
    assert rows.splits.tolist() == assign_splits(TOKENS * 2).tolist()


def test_groups_count_only_if_every_file_has_them(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", TOKENS[:2], label=["x", "y"], group=["g", "g"])
    put("b.parquet", TOKENS[2:4], label=["x", "y"])
    assert read_labelled(str(data)).split_by == "content"


def test_rows_without_a_group_are_spread_by_content(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", TOKENS, label=["x", "y"] * 100, group=pa.array(["g", None] * 100))
    rows = read_labelled(str(data))
    assert rows.splits[1::2].tolist() == assign_splits(TOKENS[1::2]).tolist()
    assert set(rows.splits[::2].tolist()) == set(assign_splits([b"g"]).tolist())


@pytest.mark.parametrize(
    "group",
    [pa.array([7, 8]), pa.array([b"\xff", b"\xfe"]), pa.array(["g", "h"]).dictionary_encode(), pa.array([[1], [2]])],
    ids=lambda group: str(group.type),
)
def test_group_of_any_type(group: pa.Array, put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", TOKENS[:2], label=["x", "y"], group=group)
    rows = read_labelled(str(data))
    assert rows.splits.tolist() == assign_splits(str(value).encode() for value in group.to_pylist()).tolist()


def test_content_has_the_same_side_as_bytes_and_as_integers(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", TOKENS, label=["x", "y"] * 100)
    put("b.parquet", pa.array([list(tokens) for tokens in TOKENS]), label=["x", "y"] * 100)
    splits = read_labelled(str(data)).splits
    assert splits[:200].tolist() == splits[200:].tolist()


def test_side_gives_the_rows_of_one_side(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", TOKENS, label=["x", "y"] * 100)
    rows = read_labelled(str(data))
    values, offsets, labels = rows.side(VALIDATION)
    chosen = [number for number, side in enumerate(rows.splits.tolist()) if side == VALIDATION]
    assert values.tobytes() == b"".join(TOKENS[number] for number in chosen)
    assert offsets.tolist()[1:] == [sum(len(TOKENS[i]) for i in chosen[: n + 1]) for n in range(len(chosen))]
    assert labels.tolist() == [number % 2 for number in chosen]
    assert offsets.dtype == labels.dtype == "int64"


def test_labels_from_partitions(put: Callable[..., Path], data: Path) -> None:
    put("label=very%20good/a.parquet", [b"1"])
    put("label=bad/a.parquet", [b"2", b"3"])
    rows = read_labelled(str(data))
    assert (rows.classes, rows.labels.tolist()) == (("bad", "very good"), [0, 0, 1])


def test_rows_without_label_or_tokens_are_counted_apart(put: Callable[..., Path], data: Path) -> None:
    put(
        "a.parquet",
        [b"1", b"2", b"", None, b"5", None],
        label=["x", None, "x", "y", "y", None],
        group=["g", "h", "i", "j", "k", "l"],
    )
    rows = read_labelled(str(data))
    assert sequences(rows) == [b"1", b"5"]
    assert (rows.num_unlabelled, rows.num_unusable) == (2, 2)
    assert rows.splits.tolist() == assign_splits([b"g", b"k"]).tolist()


def test_class_that_only_unusable_rows_have_is_none(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", [b"1", b"2", b""], label=["x", "y", "z"])
    assert read_labelled(str(data)).classes == ("x", "y")


def test_rules_apply(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", [b"\x01\x02\x03", b"\x09", b"\x01"], label=["x", "y", "y"])
    rows = read_labelled(str(data), rules=TokenRules(8, max_tokens=2))
    assert sequences(rows) == [b"\x01\x02", b"\x01"]
    assert rows.num_unusable == 1


def test_other_column_names(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", [b"0", b"0"], body=["a", "b"], kind=[1, 2], author=["g", "g"])
    rows = read_labelled(str(data), tokens_column="body", label_column="kind", group_column="author")
    assert (sequences(rows), rows.classes, rows.split_by) == ([b"a", b"b"], ("1", "2"), "group")


def refusal(source: Path) -> str:
    with pytest.raises(SourceError) as refused:
        read_labelled(str(source))
    return str(refused.value)


def test_one_class_is_refused(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", TOKENS[:2], label=["x", "x"])
    assert refusal(data) == f"The source {data} has only 'x' in column 'label'; training needs two classes or more."


def test_no_label_at_all_is_refused(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", TOKENS[:2], label=pa.array([None, None], pa.string()))
    assert "has no label at all in column 'label'" in refusal(data)
    put("a.parquet", [], label=pa.array([], pa.string()))
    assert "has no label at all in column 'label'" in refusal(data)


def test_missing_label_column_is_refused_with_the_file_and_what_it_has(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", TOKENS[:1], label=["x"])
    path = put("b.parquet", TOKENS[:1], kind=["x"])
    assert refusal(data).startswith(f"{path}: column 'label' (label")
    assert refusal(data).endswith(" is missing; the file has: tokens (binary), kind (string).")


def test_labels_of_another_type_are_refused(put: Callable[..., Path], data: Path) -> None:
    path = put("a.parquet", TOKENS[:2], label=[0.5, 1.5])
    assert refusal(data) == f"{path}: column 'label' (label) has type double; a label must be a string or an integer."


def test_labels_that_are_numbers_here_and_words_there_are_refused(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", TOKENS[:1], label=["x"])
    put("b.parquet", TOKENS[:1], label=[1])
    assert refusal(data).startswith("The label column holds integers in some files and strings in others")


def test_unreadable_files_are_refused_with_the_first_and_how_many_more(put: Callable[..., Path], data: Path) -> None:
    put("a.parquet", TOKENS[:2], label=["x", "y"])
    for name in ("b", "c", "d"):
        (data / f"{name}.parquet").write_text("no Parquet")
    message = refusal(data)
    assert message.startswith(f"{data}/b.parquet: not a whole Parquet file")
    assert message.endswith("(2 more files can't be read either)")
