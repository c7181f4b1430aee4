"""An output as other tools need to be told of it: where it is, its columns with their types and meanings, its classes.

Owns what is read of an output for that, and what its types are called elsewhere. Knows nothing about the formats that
say it: those are `contracts` and `views`.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.types as pt

from storage.described.columns import COLUMNS, KEPT, Part, describe, free_name
from storage.errors import FileError, OutputError
from storage.footers import read_footer
from storage.input.columns import find_column
from storage.input.tokens import holds_bytes
from storage.locations import Location, without_credentials
from storage.output.frames import class_names, open_predictions
from storage.output.layout import ATTENTION, PREDICTIONS, Output
from storage.output.plan import existing_output

_SQL: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pt.is_int8, "TINYINT"),
    (pt.is_int16, "SMALLINT"),
    (pt.is_int32, "INTEGER"),
    (pt.is_int64, "BIGINT"),
    (pt.is_uint8, "UTINYINT"),
    (pt.is_uint16, "USMALLINT"),
    (pt.is_uint32, "UINTEGER"),
    (pt.is_uint64, "UBIGINT"),
    (pt.is_float64, "DOUBLE"),
    (pt.is_floating, "FLOAT"),
    (pt.is_boolean, "BOOLEAN"),
    (pt.is_date, "DATE"),
    (pt.is_time, "TIME"),
    (pt.is_string, "VARCHAR"),
    (pt.is_large_string, "VARCHAR"),
    (pt.is_string_view, "VARCHAR"),
)
# As the Open Data Contract Standard has them; all else is a string.
_LOGICAL: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pt.is_integer, "integer"),
    (pt.is_floating, "number"),
    (pt.is_decimal, "number"),
    (pt.is_boolean, "boolean"),
    (pt.is_date, "date"),
    (pt.is_timestamp, "timestamp"),
    (pt.is_time, "time"),
    (pt.is_struct, "object"),
    (pt.is_map, "object"),
    (pt.is_nested, "array"),
)

_PLAIN_NAME = re.compile("[a-z_][a-z0-9_]*")


@dataclass(frozen=True)
class OutputColumn:
    """is_required: there is always a value. is_partition: it is in the path."""

    name: str
    type: pa.DataType
    comment: str
    is_required: bool = False
    is_partition: bool = False

    @property
    def sql_type(self) -> str:
        """As DuckDB calls it."""
        return sql_type(self.type)

    @property
    def logical_type(self) -> str:
        """As the Open Data Contract Standard calls it."""
        return next((name for check, name in _LOGICAL if check(_plain(self.type))), "string")


@dataclass(frozen=True)
class DescribedOutput:
    """An output. address: of its folder, without credentials. parts: the columns of predictions and of attention.

    has_rows: whether the files have the column `row`. has_positions: whether only the largest weights are saved.
    source: the root of the input. tokens: its column of tokens, and what it holds, "bytes", "text" or "ids"; None where
    the input can't be read from here.
    """

    address: str
    format_version: int
    has_rows: bool
    parts: dict[Part, tuple[OutputColumn, ...]]
    classes: tuple[str, ...]
    source: str
    tokens: tuple[str, str] | None

    @property
    def name(self) -> str:
        """What the output's folder is called."""
        return self.address.rstrip("/").rpartition("/")[2] or "output"

    @property
    def has_positions(self) -> bool:
        return any(column.name == "positions" for column in self.parts.get("attention", ()))

    @property
    def partitions(self) -> tuple[OutputColumn, ...]:
        return tuple(column for column in self.parts["predictions"] if column.is_partition)

    def free_name(self, wanted: str) -> str:
        """A name for one more column: this one or, where a column of the predictions has it, one like it."""
        return free_name(wanted, (column.name for column in self.parts["predictions"]))


def describe_output(place: str) -> DescribedOutput:
    """Read what there is to say of an output. Raises OutputError if it is none, or has no predictions yet."""
    output = existing_output(place)
    schema = open_predictions(place).collect_schema()
    parts: dict[Part, tuple[OutputColumn, ...]] = {"predictions": _columns(output, "predictions", PREDICTIONS)}
    stored = {column.name for column in parts["predictions"]}
    # `row` of a file that has none is no partition.
    in_path = [name for name in schema.names() if name not in stored and (name != "row" or output.settings.has_rows)]
    types = schema.to_frame().to_arrow().schema
    partitions = [
        OutputColumn(name, types.field(name).type, "a folder of the path", is_partition=True) for name in in_path
    ]
    parts["predictions"] += tuple(partitions)
    if output.settings.attention.kind != "none":
        parts["attention"] = _columns(output, "attention", ATTENTION) + tuple(partitions)
    source = Output.recorded_source(place)
    return DescribedOutput(
        address=output.root.path if output.root.is_local else without_credentials(place),
        format_version=output.settings.format_version,
        has_rows=output.settings.has_rows,
        parts=parts,
        classes=class_names(place),
        source=without_credentials(source),
        tokens=_tokens(source, output.settings.columns.tokens),
    )


def sql_type(kind: pa.DataType) -> str:
    """What DuckDB calls a type that it reads from Parquet."""
    kind = _plain(kind)
    if kind == pa.uuid():
        return "UUID"
    if pt.is_decimal(kind):
        return f"DECIMAL({kind.precision},{kind.scale})"
    if pt.is_timestamp(kind):
        return "TIMESTAMP WITH TIME ZONE" if kind.tz else "TIMESTAMP"
    if pt.is_struct(kind):
        names = [each.name if _PLAIN_NAME.fullmatch(each.name) else quoted(each.name) for each in kind]
        return f"STRUCT({', '.join(f'{name} {sql_type(each.type)}' for name, each in zip(names, kind, strict=True))})"
    if pt.is_map(kind):
        return f"MAP({sql_type(kind.key_type)}, {sql_type(kind.item_type)})"
    if pt.is_nested(kind):
        return f"{sql_type(kind.value_type)}[]"
    return next((name for check, name in _SQL if check(kind)), "BLOB")


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _plain(kind: pa.DataType) -> pa.DataType:
    if pt.is_dictionary(kind):
        return _plain(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType) and kind != pa.uuid():
        return _plain(kind.storage_type)
    return kind


def _columns(output: Output, part: Part, folder: str) -> tuple[OutputColumn, ...]:
    files = (output.root / folder).files(".parquet")
    if not files:
        raise OutputError(f"{output.root} has no {part} yet.")
    schema = read_footer(files[0]).schema
    never_null = {column.name for column in COLUMNS[part] if column.null == "never" and column.name != KEPT}
    return tuple(
        OutputColumn(column.name, column.type, describe(part, column.name).comment, column.name in never_null)
        for column in schema
    )


def _tokens(source: str, name: str) -> tuple[str, str] | None:
    """The column of tokens of a source, and what it holds, by its first file."""
    with suppress(FileError, OSError, pa.ArrowException):
        for place in Location.parse(source).files(".parquet"):
            column = find_column(read_footer(place).schema, name)
            if column is None:
                return None
            kind = _plain(column.type)
            is_text = any(check(kind) for check in (pt.is_string, pt.is_large_string, pt.is_string_view))
            return name, "text" if is_text else "bytes" if holds_bytes(kind) else "ids"
    return None
