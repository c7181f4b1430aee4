"""What is carried from the input to the output: of which type an id or a kept column is in all files of an output.

Owns which types agree, how a column becomes another type without losing anything, and when two values are the same.
Knows nothing about files.
"""

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from storage.errors import FileError

Types = Mapping[str, pa.DataType]
"""Of `id` and the kept columns, by their names in the output."""

_KINDS: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "number": (pt.is_integer, pt.is_floating, pt.is_decimal),
    "text": (pt.is_string, pt.is_large_string, pt.is_string_view),
    "bytes": (pt.is_binary, pt.is_large_binary, pt.is_binary_view, pt.is_fixed_size_binary),
    "nested": (pt.is_nested,),
    "duration": (pt.is_duration,),
    "time of day": (pt.is_time,),
}
# Of a decimal. DuckDB reads more as floats, and Polars none.
_MOST_DIGITS = 38


def common_types(files: Iterable[Types]) -> dict[str, pa.DataType]:
    """The types that the columns of these files have together; where there are none, those of the first file.

    They are such as DuckDB, Polars and pandas read: decimals of more than 38 digits are text, zones such as `+05:30`
    are UTC, and list views are lists. A column that is null in all files has no type yet.
    """
    found: dict[str, dict[pa.DataType, None]] = {}
    for types in files:
        for name, kind in types.items():
            if not pt.is_null(kind):
                found.setdefault(name, {})[_readable(kind)] = None
    return {name: _common(list(kinds)) for name, kinds in found.items()}


def types_to_record(types: Types) -> dict[str, Any]:
    """For JSON: `types` in words, for people, and `arrow_schema` as Arrow has it, which is what counts."""
    if not types:
        return {}
    schema = base64.b64encode(pa.schema(dict(types)).serialize().to_pybytes()).decode()
    return {"types": {name: str(kind) for name, kind in types.items()}, "arrow_schema": schema}


def types_from_record(record: Mapping[str, Any]) -> dict[str, pa.DataType]:
    """Empty if none are recorded. Raises ValueError if they are damaged."""
    if "arrow_schema" not in record:
        return {}
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(record["arrow_schema"], validate=True)))
    except (pa.ArrowException, TypeError, OSError) as error:
        raise ValueError(f"arrow_schema: {error}") from None
    return {column.name: column.type for column in schema}


def as_read_back(types: Types) -> dict[str, pa.DataType]:
    """The types that a Parquet file of such columns is read with, such as milliseconds for seconds."""
    file = pa.BufferOutputStream()
    # Not by `empty_table`, which has no arrays of lists of extensions, such as DuckDB's lists of UUIDs.
    pq.write_table(pa.Table.from_batches([], pa.schema(dict(types))), file)
    return {column.name: column.type for column in pq.read_schema(pa.BufferReader(file.getvalue()))}


def fit(name: str, column: pa.ChunkedArray, kind: pa.DataType, first_row: int, note: str = "") -> pa.ChunkedArray:
    """The column as this type, without loss.

    first_row: position in the input file of the first of its rows. note: what else is to be said of its type.
    Raises FileError, which names both types, if they do not go together or a value would change.
    """
    if column.type == kind:
        return column
    advice = "Give the column this type in the file, or write to another folder."
    both = f"{name!r} is {column.type} here{note}, and {kind} in this output"
    if not _may_become(column.type, kind):
        raise FileError(f"{both}. {advice}")
    fitting = _without_loss(column, kind)
    if fitting is None:
        # The shortest beginning of the column that does not fit ends with the first value that does not.
        fits, fails = 0, len(column)
        while fails - fits > 1:
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if _without_loss(column[:middle], kind) is not None else (fits, middle)
        raise FileError(f"{both}, which the value in row {first_row + fails - 1} does not fit. {advice}")
    return fitting


def misfits(types: Types, wanted: Types) -> list[str]:
    """Which columns of a file can't become what they are in an output, as `fit` would say of any value."""
    return [
        f"{name!r} is {kind} here, and {wanted[name]} in this output"
        for name, kind in types.items()
        if name in wanted and kind != wanted[name] and not _may_become(kind, wanted[name])
    ]


def differing(found: pa.ChunkedArray, expected: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """bool (N,): where two columns of N rows differ. Nulls are equal to each other, and so are NaNs."""
    found, expected = _comparable(found), _comparable(expected)
    differ: npt.NDArray[np.bool_] = found.is_null().to_numpy() != expected.is_null().to_numpy()
    try:
        found = found.cast(expected.type)
        differ |= pc.fill_null(pc.not_equal(found, expected), False).to_numpy()
        if pt.is_floating(expected.type):
            both = pc.and_(pc.is_nan(found), pc.is_nan(expected))
            differ &= ~pc.fill_null(both, False).to_numpy()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError):
        # Nested columns, which no kernel compares, and such as do not even have the same type.
        differ = np.zeros(len(expected), bool)
        _mark_differing(found, expected, 0, differ)
    return differ


def _mark_differing(found: pa.ChunkedArray, expected: pa.ChunkedArray, first: int, differ: Any) -> None:
    """By halves, so that equal stretches cost one comparison."""
    count = len(expected)
    if not count or found.equals(expected):
        return
    if count == 1:
        differ[first] = repr(found[0].as_py()) != repr(expected[0].as_py())  # by their text, NaN equals NaN
        return
    half = count // 2
    _mark_differing(found[:half], expected[:half], first, differ)
    _mark_differing(found[half:], expected[half:], first + half, differ)


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pt.is_dictionary(kind):
        return _comparable(column.cast(kind.value_type))
    if pt.is_string_view(kind):
        return column.cast(pa.large_string())
    if pt.is_list_view(kind) or pt.is_large_list_view(kind):
        return pa.chunked_array([_as_lists(chunk) for chunk in column.chunks], pa.list_(kind.value_field))
    return column.cast(pa.large_binary()) if pt.is_binary_view(kind) else column


def _as_lists(views: pa.Array) -> pa.ListArray:
    # A cast in pyarrow 26 leaves the last offset out.
    lengths = pc.fill_null(pc.list_value_length(views), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int32())
    return pa.ListArray.from_arrays(offsets, views.flatten(), pa.list_(views.type.value_field), mask=views.is_null())


def _readable(kind: pa.DataType) -> pa.DataType:
    """The type itself if other readers know it, or one that holds the same values."""
    if pt.is_decimal(kind) and kind.precision > _MOST_DIGITS:
        return pa.string()
    if pt.is_timestamp(kind) and kind.tz and kind.tz[0] in "+-":
        return pa.timestamp(kind.unit, "UTC")
    if pt.is_struct(kind):
        return pa.struct([each.with_type(_readable(each.type)) for each in kind])
    if pt.is_map(kind):
        key, item = (each.with_type(_readable(each.type)) for each in (kind.key_field, kind.item_field))
        return pa.map_(key, item, kind.keys_sorted)
    if pt.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_readable(kind.value_type)), kind.list_size)
    lists = {pt.is_list: pa.list_, pt.is_list_view: pa.list_, pt.is_large_list: pa.large_list}
    for check, make in (lists | {pt.is_large_list_view: pa.large_list}).items():
        if check(kind):
            return make(kind.value_field.with_type(_readable(kind.value_type)))
    return kind


def _common(types: list[pa.DataType]) -> pa.DataType:
    first, *others = types
    kinds = {_kind(kind) for kind in types}
    if not others:
        return first
    if kinds <= {"number", "text"} and "text" in kinds:
        return pa.string()
    if kinds in ({"time"}, {"instant"}):
        return _common_time(types)
    if len(kinds) == 1:
        try:
            schemas = [pa.schema({"": kind}) for kind in types]
            return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        except pa.ArrowException:
            pass
    return first


def _common_time(types: list[pa.DataType]) -> pa.DataType:
    units = {kind.unit for kind in types if pt.is_timestamp(kind)}
    if not units:
        return pa.date32()
    zones = {kind.tz for kind in types if pt.is_timestamp(kind)}
    # Microseconds hold every date; nanoseconds end in 2262.
    unit = units.pop() if len(units) == 1 and len(zones) == 1 and all(map(pt.is_timestamp, types)) else "us"
    return pa.timestamp(unit, zones.pop() if len(zones) == 1 else "UTC")


def _kind(kind: pa.DataType) -> str:
    if pt.is_dictionary(kind):
        return _kind(kind.value_type)
    if pt.is_date(kind) or (pt.is_timestamp(kind) and kind.tz is None):
        return "time"
    if pt.is_timestamp(kind):
        return "instant"
    return next((name for name, checks in _KINDS.items() if any(check(kind) for check in checks)), str(kind))


def _may_become(kind: pa.DataType, other: pa.DataType) -> bool:
    kinds = {_kind(kind), _kind(other)}
    return pt.is_null(kind) or len(kinds) == 1 or kinds == {"number", "text"}


def _without_loss(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """None if there is no way to this type and back."""
    if pt.is_null(column.type):
        return pa.chunked_array([pa.nulls(len(column), kind)])
    try:
        fitting = _comparable(column).cast(kind)
    except (pa.ArrowException, ValueError):
        return None
    return None if differing(fitting, column).any() else fitting
