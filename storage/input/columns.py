"""Which columns of an input file are read, under which names, and whether a file has them.

Owns the names that users choose, columns inside structs, and the clash of names with ours. Reads schemas, never data.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.types as pt

from storage.errors import FileError, OutputError, did_you_mean
from storage.footers import NO_TYPE
from storage.input.hive import partition_values
from storage.input.tokens import check_token_type

# The columns of a predictions file that are ours, in their order; kept columns stand after `id`.
ROW = "row"
PREDICTION_COLUMNS = (
    ROW,
    "id",
    "prediction",
    "score",
    "probabilities",
    "num_tokens",
    "truncated",
    "error",
    "checkpoint",
)
# Those of an attention file that are read beside them.
ATTENTION_COLUMNS = ("positions", "weights")
# Names are compared without their case, as DuckDB and Spark do.
OURS = frozenset((*PREDICTION_COLUMNS, *ATTENTION_COLUMNS))


@dataclass(frozen=True)
class Columns:
    """tokens: column with the token sequences. id: column carried through as `id`. keep: others carried through.

    A name with dots reaches into structs where no column has that very name. An input file without a column `id` gets
    the row's position in its file as `id`; of another name, the column is required. ours: what the output calls columns
    of its own, in lower case.
    """

    tokens: str = "tokens"
    id: str = "id"
    keep: tuple[str, ...] = field(default=())
    ours: frozenset[str] = OURS

    def __post_init__(self) -> None:
        clash = sorted(name for name in self.keep if name.casefold() in self.ours)
        if clash:
            raise OutputError(
                f"keep names {', '.join(clash)}, which the output has as a column of its own. "
                "Rename the input's column, or leave it out of keep."
            )
        names = [name.casefold() for name in self.keep]
        repeated = sorted({name for name in self.keep if names.count(name.casefold()) > 1})
        if repeated:
            raise OutputError(f"keep names {', '.join(repeated)} more than once.")

    def to_read(self, schema: pa.Schema, relative: str) -> list[str]:
        """The columns to read from a file with this schema.

        A kept column that is a Hive partition is carried by the output's path; where the file has such a column too, it
        is read to be compared. Raises FileError if a column that was named is missing or of a type that can't be used.
        """
        check_token_type(self.tokens, require_column(schema, self.tokens, "tokens_column").type)
        partitions = partition_values(relative)
        kept = [name for name in self.keep if name not in partitions or find_column(schema, name)]
        for name in kept:
            require_column(schema, name, "keep")
        names = [self.tokens, *kept]
        if has_column(schema, self.id) or (self.id not in partitions and self.id != "id"):
            kind = require_column(schema, self.id, "id_column").type
            if pt.is_nested(kind):
                raise FileError(f"column {self.id!r} has type {kind}; an id must be a scalar, such as an integer")
            names.append(self.id)
        return list(dict.fromkeys(names))

    def carried_types(self, schema: pa.Schema, relative: str) -> dict[str, pa.DataType]:
        """The types that `id` and the kept columns of such a file are carried with, by their names in the output.

        An id that is a Hive partition is text, and row numbers are int64. A kept partition is in the path alone.
        """
        partitions = partition_values(relative)
        id_field = None if self.id in partitions else find_column(schema, self.id)
        id_type = pa.string() if self.id in partitions else pa.int64() if id_field is None else id_field.type
        kept = {name: find_column(schema, name) for name in self.keep if name not in partitions}
        return {"id": id_type} | {name: column.type for name, column in kept.items() if column is not None}

    def overlooked_id(self, schema: pa.Schema) -> str | None:
        """What might be meant by ids in a file without `id`, such as a column `ID`, and how to have it; None: nothing.

        That may be an index which pandas wrote as a range, as a note of its own that no other reader sees.
        """
        if self.id != "id" or has_column(schema, "id"):
            return None
        name = next((name for name in schema.names if name.casefold() == "id" and name not in self.keep), None)
        if name is not None:
            return f"a column {name!r} and none called 'id', so ids are row numbers; --id-column {name} takes it"
        if "id" in _ranges_of_pandas(schema):
            return "an index 'id' of pandas and no column, so ids are row numbers; to_parquet(index=True) writes it"
        return None

    def refuse_partitions(self, files: Iterable[str]) -> None:
        """Raises OutputError if a partition in these relative names is called like a column of the output."""
        kept = {name.casefold(): name for name in self.keep}
        for file in files:
            for name in partition_values(file):
                other = kept.get(name.casefold(), name)
                if other != name:
                    raise OutputError(
                        f"{file}: a partition called {name} clashes with the kept column {other}: DuckDB and Spark do "
                        "not tell them apart. Rename one of them, or leave it out of keep."
                    )
                if name.casefold() in self.ours:
                    raise OutputError(
                        f"{file}: a partition called {name} clashes with the output's column {name.casefold()}, so the "
                        "output could not be read. Rename the folders."
                    )


def _ranges_of_pandas(schema: pa.Schema) -> list[str]:
    """The names of indexes that pandas did not write, since it can make them again."""
    try:
        indexes = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        return [index["name"] for index in indexes if isinstance(index, dict)]
    except (KeyError, ValueError, TypeError):
        return []


def find_column(schema: pa.Schema, name: str) -> pa.Field | None:
    """The column of this name or, where there is none, the field inside structs that the name's dots lead to.

    Null as soon as a struct on the way is. None if there is no such column, or several.
    """
    if schema.names.count(name) == 1:
        return schema.field(name)
    head, dot, rest = name.partition(".")
    while dot:
        if schema.names.count(head) == 1 and pt.is_struct(schema.field(head).type):
            inner = find_column(pa.schema(list(schema.field(head).type)), rest)
            if inner is not None:
                return inner.with_name(name).with_nullable(True)
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return None


def has_column(schema: pa.Schema, name: str) -> bool:
    """Whether there is such a column, if only for `require_column` to refuse it because there are several."""
    return name in schema.names or find_column(schema, name) is not None


def require_column(schema: pa.Schema, name: str, role: str) -> pa.Field:
    """The column of this name (see `find_column`). Raises FileError, which lists what there is, without exactly one.

    role: the setting that names the column, for the message.
    """
    found = schema.names.count(name)
    if found > 1:
        raise FileError(f"column {name!r} ({role}) stands {found} times in the schema; rename all but one")
    field = find_column(schema, name)
    if field is None:
        columns = ", ".join(f"{column.name} ({column.type})" for column in schema) or "none"
        guess = did_you_mean(name, schema.names)
        raise FileError(f"column {name!r} ({role}) is missing; the file has: {columns}{guess and f'.{guess}'}")
    column = field if found else next(each for each in schema if name.startswith(f"{each.name}."))
    if why := (column.metadata or {}).get(NO_TYPE):
        raise FileError(
            f"column {name!r} ({role}) is stored as {field.type}, and what that stands for can't be read "
            f"({why.decode()}). Write it as another type, such as 64-bit integers or text."
        )
    return field


def select_columns(table: pa.Table, names: list[str]) -> pa.Table:
    """A table with these columns, in this order, from one that holds them or the structs that they are in."""
    return pa.table({name: _column(table, name) for name in names}) if names else table


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name in table.column_names:
        return table[name]
    head, dot, rest = name.partition(".")
    while dot:
        if head in table.column_names and find_column(pa.schema(list(table.schema.field(head).type)), rest):
            # Flattened, the fields of a null struct are null.
            kind = table.schema.field(head).type
            children = table[head].flatten()
            inner = pa.Table.from_arrays(children, [kind.field(i).name for i in range(kind.num_fields)])
            return _column(inner, rest)
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    raise KeyError(name)


def column_or_partition(table: pa.Table, name: str, file: str) -> pa.ChunkedArray:
    """What every row has under this name: a Hive partition of the file, as text, or else a column of its table.

    file: the relative name that the table was read from. Raises KeyError if it is neither.
    """
    partitions = partition_values(file)
    if name not in partitions:
        return table[name]
    return pa.chunked_array([pa.repeat(pa.scalar(partitions[name], pa.string()), table.num_rows)])
