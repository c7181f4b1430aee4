"""Which columns of an input file are read, under which names, and whether a file has them.

Owns the names that users choose and the clash of kept names with ours. Reads schemas, never data.
"""

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.types as pt

from storage.errors import FileError, OutputError
from storage.input.sources import partition_values
from storage.input.tokens import check_token_type

# The columns of a predictions file that are ours, in their order; kept columns stand after `id`.
PREDICTION_COLUMNS = (
    "id",
    "prediction",
    "score",
    "probabilities",
    "num_tokens",
    "truncated",
    "error",
    "checkpoint",
)


@dataclass(frozen=True)
class Columns:
    """tokens: column with the token sequences. id: column carried through as `id`. keep: others carried through.

    An input file without the id column gets the row's position in its file as `id`.
    """

    tokens: str = "tokens"
    id: str = "id"
    keep: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        clash = sorted(set(self.keep) & set(PREDICTION_COLUMNS))
        if clash:
            raise OutputError(
                f"keep names {', '.join(clash)}, which the predictions have as a column of their own. "
                "Rename the input's column, or leave it out of keep."
            )
        repeated = sorted({name for name in self.keep if self.keep.count(name) > 1})
        if repeated:
            raise OutputError(f"keep names {', '.join(repeated)} more than once.")

    def to_read(self, schema: pa.Schema, relative: str) -> list[str]:
        """The columns to read from a file with this schema.

        A kept column that is a Hive partition needs no reading: the output's path carries it.
        Raises FileError if the tokens or a kept column is missing or of a type that can't be used.
        """
        require_column(schema, self.tokens, "tokens_column")
        check_token_type(self.tokens, schema.field(self.tokens).type)
        partitions = partition_values(relative)
        kept = [name for name in self.keep if name not in partitions]
        for name in kept:
            require_column(schema, name, "keep")
        names = [self.tokens, *kept]
        if self.id in schema.names:
            kind = schema.field(self.id).type
            if pt.is_nested(kind):
                raise FileError(f"column {self.id!r} has type {kind}; an id must be a scalar, such as an integer")
            names.append(self.id)
        return list(dict.fromkeys(names))


def require_column(schema: pa.Schema, name: str, role: str) -> None:
    """Raises FileError, which lists what there is, unless the schema has exactly one column of this name.

    role: the setting that names the column, for the message.
    """
    found = schema.names.count(name)
    if found == 1:
        return
    if found:
        raise FileError(f"column {name!r} ({role}) stands {found} times in the schema; rename all but one")
    columns = ", ".join(f"{column.name} ({column.type})" for column in schema) or "none"
    raise FileError(f"column {name!r} ({role}) is missing; the file has: {columns}")
