"""Every column type that can hold tokens decodes as a plain Python loop over the rows would have it."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import FileError
from storage.input.tokens import TokenRows, TokenRules, check_token_type, decode_tokens

INTEGERS = [getattr(pa, f"{sign}int{width}")() for sign in ("", "u") for width in (8, 16, 32, 64)]
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.string(), pa.large_string(), pa.string_view()]
LISTS = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view]

Sequence = list[int | None] | None  # what a cell of a tokens column says; None for a null


def reference(rows: list[Sequence], rules: TokenRules) -> list[tuple[str | None, int, bool, list[int]]]:
    """(error, num_tokens, truncated, tokens to score) of each row, one row at a time."""
    expected: list[tuple[str | None, int, bool, list[int]]] = []
    for row in rows:
        tokens = [token for token in row or [] if token is not None]
        if row is None:
            expected.append(("tokens are null", -1, False, []))
        elif not row:
            expected.append(("no tokens", 0, False, []))
        elif len(tokens) < len(row):
            expected.append(("a null among the tokens", len(row), False, []))
        elif not all(0 <= token < rules.num_tokens_known for token in tokens):
            expected.append((f"a token id outside 0..{rules.num_tokens_known - 1}", len(row), False, []))
        elif rules.max_tokens is not None and len(row) > rules.max_tokens:
            if rules.long_rows == "error":
                expected.append((f"longer than {rules.max_tokens} tokens", len(row), False, []))
            else:
                expected.append((None, len(row), True, tokens[: rules.max_tokens]))
        else:
            expected.append((None, len(row), False, tokens))
    return expected


def decoded(rows: TokenRows) -> list[tuple[str | None, int, bool, list[int]]]:
    """The same from what `decode_tokens` gave, with its own promises checked on the way."""
    assert rows.offsets.dtype == np.int64
    assert rows.offsets[0] == 0
    assert rows.offsets[-1] == len(rows.values)
    assert (np.diff(rows.offsets) > 0).all()
    assert np.issubdtype(rows.values.dtype, np.integer)
    assert rows.usable.tolist() == [error is None for error in rows.errors.to_pylist()]
    sequences = iter(np.split(rows.values, rows.offsets[1:-1]))
    tokens = [next(sequences).tolist() if usable else [] for usable in rows.usable]
    return list(zip(rows.errors.to_pylist(), rows.num_tokens.tolist(), rows.truncated.tolist(), tokens, strict=True))


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.ChunkedArray, list[Sequence]]:
    """A column of any accepted type, chunked and sliced anyhow, and what its cells say."""
    family = draw(st.sampled_from(["bytes", "fixed bytes", "list", "fixed list"]))
    if family == "bytes":
        kind = draw(st.sampled_from(BYTES))
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        letters = st.text(st.sampled_from("\0\1bé"), max_size=6)
        cell: st.SearchStrategy[object] = letters if text else letters.map(str.encode)
    elif family == "fixed bytes":
        width = draw(st.integers(0, 3))
        kind, cell = pa.binary(width), st.binary(min_size=width, max_size=width)
    else:
        token = draw(st.sampled_from(INTEGERS))
        limits = np.iinfo(token.to_pandas_dtype())
        # Mostly small ones, so that most rows are usable and each reason not to be comes alone.
        far = st.integers(int(limits.min), int(limits.max))
        number = st.integers(0, 15).flatmap(lambda n: st.none() if n == 0 else far if n == 1 else st.integers(0, 99))
        size = draw(st.integers(0, 3))
        if family == "list":
            kind, cell = draw(st.sampled_from(LISTS))(token), st.lists(number, max_size=6)
        else:
            kind, cell = pa.list_(token, size), st.lists(number, min_size=size, max_size=size)
    cells = draw(st.lists(st.none() | cell, max_size=12))
    chunks: list[pa.Array] = []
    said: list[Sequence] = []
    remaining = cells
    while remaining:
        size = draw(st.integers(1, len(remaining)))
        here, remaining = remaining[:size], remaining[size:]
        array = pa.array(here, kind)
        if family in ("bytes", "fixed bytes") and draw(st.booleans()):
            array = array.dictionary_encode() if draw(st.booleans()) else array
        first = draw(st.integers(0, size))
        last = draw(st.integers(first, size))
        chunks.append(array.slice(first, last - first))
        said += [as_tokens(value) for value in here[first:last]]
    if any(pa.types.is_dictionary(chunk.type) for chunk in chunks):
        chunks = [chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode() for chunk in chunks]
    return pa.chunked_array(chunks, chunks[0].type if chunks else kind), said


def as_tokens(value: object) -> Sequence:
    return list(value.encode()) if isinstance(value, str) else None if value is None else list(value)  # type: ignore[call-overload]


@settings(max_examples=100)
@given(
    columns(),
    st.sampled_from([256, 100, 99, 2, 257]),
    st.none() | st.integers(1, 3),
    st.sampled_from(["truncate", "error"]),
)
def test_any_column_decodes_as_a_loop_over_its_rows_would(
    column_and_rows: tuple[pa.ChunkedArray, list[Sequence]], known: int, max_tokens: int | None, long_rows: str
) -> None:
    column, rows = column_and_rows
    rules = TokenRules(known, max_tokens, long_rows)
    check_token_type("tokens", column.type)
    assert decoded(decode_tokens(column, rules)) == reference(rows, rules)


@pytest.mark.parametrize("integer", INTEGERS, ids=str)
@pytest.mark.parametrize("make_list", [*LISTS, lambda kind: pa.list_(kind, 2)])
def test_each_integer_width_in_each_kind_of_list(make_list: object, integer: pa.DataType) -> None:
    kind = make_list(integer)  # type: ignore[operator]
    rows: list[Sequence] = [[3, 1], None, [4, None], [1, 5], [127, 0]]
    array = pa.array(rows, kind)
    column = pa.chunked_array([array.slice(0, 2), array.slice(2), array.slice(1, 3)])
    check_token_type("tokens", kind)
    expected = reference(rows + rows[1:4], TokenRules(100))
    assert decoded(decode_tokens(column, TokenRules(100))) == expected


def test_what_null_rows_hide_is_not_read() -> None:
    null_in_the_middle = pa.array([False, True, False])
    values = pa.array([1, 2, 200, 201, 3, 4], pa.uint8())
    rows: list[Sequence] = [[1, 2], None, [3, 4]]
    data = pa.py_buffer(bytes(values.to_pylist()))
    validity = pa.py_buffer(bytes([0b101]))
    offsets = pa.py_buffer(np.array([0, 2, 4, 6], np.int32))
    for array in (
        pa.ListArray.from_arrays(pa.array([0, 2, 4, 6], pa.int32()), values, mask=null_in_the_middle),
        pa.FixedSizeListArray.from_arrays(values, 2, mask=null_in_the_middle),
        pa.Array.from_buffers(pa.binary(), 3, [validity, offsets, data]),
        pa.Array.from_buffers(pa.binary(2), 3, [validity, data]),
    ):
        assert decoded(decode_tokens(pa.chunked_array([array]), TokenRules(100))) == reference(rows, TokenRules(100))


def test_list_views_may_overlap_and_stand_in_any_order() -> None:
    values = pa.array([1, 2, 3, 4], pa.int16())
    views = pa.ListViewArray.from_arrays(pa.array([2, 0, 1], pa.int32()), pa.array([2, 3, 0], pa.int32()), values)
    rows: list[Sequence] = [[3, 4], [1, 2, 3], []]
    assert decoded(decode_tokens(pa.chunked_array([views]), TokenRules())) == reference(rows, TokenRules())


def test_dictionaries_of_lists_and_lists_of_dictionaries() -> None:
    sequences = pa.array([[1, 2], [3]], pa.list_(pa.int8()))
    outer = pa.DictionaryArray.from_arrays(pa.array([1, 0, None, 1], pa.int8()), sequences)
    rows: list[Sequence] = [[3], [1, 2], None, [3]]
    assert decoded(decode_tokens(pa.chunked_array([outer]), TokenRules())) == reference(rows, TokenRules())
    tokens = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1], pa.int8()), pa.array([7, None], pa.int64()))
    inner = pa.ListArray.from_arrays([0, 1, 3], tokens)
    check_token_type("tokens", inner.type)
    rows = [[7], [None, None]]
    assert decoded(decode_tokens(pa.chunked_array([inner]), TokenRules())) == reference(rows, TokenRules())


def test_null_inside_a_dictionary_is_a_null_row() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), pa.array([b"a", None]))
    assert decode_tokens(pa.chunked_array([column]), TokenRules()).errors.to_pylist() == [None, "tokens are null"]


@pytest.mark.parametrize("long_rows", ["truncate", "error"])
def test_only_rows_that_are_scored_in_part_are_truncated(long_rows: str) -> None:
    column = pa.chunked_array([pa.array([[1, 2], [1, 2, 3], [1, 2, None], [1, 2, 999]])])
    rows = decode_tokens(column, TokenRules(256, max_tokens=2, long_rows=long_rows))
    error = None if long_rows == "truncate" else "longer than 2 tokens"
    assert rows.errors.to_pylist() == [None, error, "a null among the tokens", "a token id outside 0..255"]
    assert rows.truncated.tolist() == [False, long_rows == "truncate", False, False]
    assert rows.num_tokens.tolist() == [2, 3, 3, 3]


def test_binary_without_unusable_rows_is_not_copied() -> None:
    column = pa.chunked_array([pa.array([b"ab", b"cde"], pa.large_binary())])
    values = decode_tokens(column, TokenRules()).values
    assert values.ctypes.data == column.chunk(0).buffers()[2].address


@pytest.mark.parametrize(
    ("array", "rows"),
    [
        (pa.nulls(2), [None, None]),
        (pa.array([[], None, [None, None]], pa.list_(pa.null())), [[], None, [None, None]]),
        (pa.array([[], None], pa.large_list(pa.null())), [[], None]),
        (pa.array([[None, None], None], pa.list_(pa.null(), 2)), [[None, None], None]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_columns_of_nulls_are_rows_with_an_error(array: pa.Array, rows: list[Sequence]) -> None:
    check_token_type("tokens", array.type)
    column = pa.chunked_array([array, array.slice(1)])
    assert decoded(decode_tokens(column, TokenRules())) == reference(rows + rows[1:], TokenRules())


def test_extension_types_are_read_as_what_they_are_stored_as() -> None:
    texts = pa.array(['{"a": 1}', None, "[]"])
    for storage in (texts, texts.cast(pa.large_string()), texts.cast(pa.string_view())):
        column = pa.ExtensionArray.from_storage(pa.json_(storage.type), storage)
        check_token_type("tokens", column.type)
        expected = reference([as_tokens(text) for text in texts.to_pylist()], TokenRules())
        assert decoded(decode_tokens(pa.chunked_array([column]), TokenRules())) == expected
    uuids = pa.array([bytes(range(16)), None], pa.uuid())
    expected = reference([list(range(16)), None], TokenRules())
    assert decoded(decode_tokens(pa.chunked_array([uuids]), TokenRules())) == expected


@pytest.mark.parametrize(
    ("known", "dtype"), [(256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.uint32)]
)
def test_list_values_come_in_the_narrowest_type_that_holds_the_vocabulary(known: int, dtype: type) -> None:
    rows = decode_tokens(pa.chunked_array([pa.array([[1, known - 1]])]), TokenRules(known))
    assert rows.values.dtype == dtype
    assert rows.values.tolist() == [1, known - 1]


def test_ids_outside_the_vocabulary_are_errors_even_where_they_would_be_cut_off_or_wrap() -> None:
    for cells, kind in (
        ([[0, 99], [-1, 5], [100], [5, -128]], pa.list_(pa.int8())),
        ([[2**64 - 1], [5], [1, 2, 300]], pa.list_(pa.uint64())),
        ([list(b"c"), list(b"d")], pa.list_(pa.uint8())),
    ):
        for rules in (TokenRules(100), TokenRules(100, max_tokens=2)):
            column = pa.chunked_array([pa.array(cells, kind)])
            assert decoded(decode_tokens(column, rules)) == reference(cells, rules)
    assert decode_tokens(pa.chunked_array([pa.array([b"d"])]), TokenRules(100)).errors[0].as_py() == (
        "a token id outside 0..99"
    )


@pytest.mark.parametrize("kind", [pa.binary(), pa.string_view(), pa.list_(pa.int64()), pa.list_(pa.int8(), 2)])
def test_column_without_rows_or_chunks(kind: pa.DataType) -> None:
    for column in (pa.chunked_array([], kind), pa.chunked_array([pa.array([], kind)])):
        assert decoded(decode_tokens(column, TokenRules(100))) == []


@pytest.mark.parametrize(
    "kind",
    [
        pa.int64(),
        pa.float32(),
        pa.list_(pa.float32()),
        pa.list_(pa.string()),
        pa.list_(pa.list_(pa.int8())),
        pa.struct({"a": pa.int8()}),
        pa.map_(pa.int8(), pa.int8()),
        pa.dictionary(pa.int8(), pa.int8()),
    ],
    ids=str,
)
def test_other_types_are_refused_with_what_is_accepted(kind: pa.DataType) -> None:
    with pytest.raises(FileError) as refused:
        check_token_type("body", kind)
    assert str(refused.value) == f"column 'body' has type {kind}; tokens must be binary, string, or a list of integers"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tokens_known": 0}, "num_tokens_known must be at least 1, not 0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"long_rows": "drop"}, "long_rows must be 'truncate' or 'error', not 'drop'"),
    ],
)
def test_bad_rules_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenRules(**settings)  # type: ignore[arg-type]
