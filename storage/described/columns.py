"""What each column of an output means: the one place where it is written.

The columns' comments in the files, the page that lies in an output, contracts for other tools and the tables in
storage/README.md all say what stands here. Knows nothing about how columns are made.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from storage.input.columns import ROW

COMMENT = "comment"
"""The key of a column's meaning in its field's metadata, as Spark and DuckDB call it."""

KEPT = "kept columns"
_NO_PREDICTION = "beside an error, and where the score is below `abstain_below`"
_ERROR = "beside an error"
Part = Literal["predictions", "attention"]


@dataclass(frozen=True)
class Column:
    """type, null: in words, and when there is no value. meaning: Markdown, a clause. of_top: with top:K only."""

    name: str
    type: str
    null: str
    meaning: str
    of_top: bool = False

    @property
    def comment(self) -> str:
        """The meaning as plain text."""
        return self.meaning.replace("`", "")


COLUMNS: dict[Part, tuple[Column, ...]] = {
    "predictions": (
        Column(ROW, "int64", "never", "the row's position in its input file, from 0"),
        Column(
            "id",
            "as the input's; int64 if the input has none",
            "as the input's",
            "the input's id, or the row's position in its file, from 0",
        ),
        Column(KEPT, "as the input's", "as the input's", "carried through from the input, under its own name"),
        Column("prediction", "string, int64 or bool", _NO_PREDICTION, "the class with the highest probability"),
        Column("score", "float32", _ERROR, "the probability of `prediction`"),
        Column(
            "probabilities",
            "fixed-size list of float32",
            _ERROR,
            "one for each class, in the order of `classes` in the file's metadata; they sum to 1",
        ),
        Column("num_tokens", "int64", "where the tokens are null", "tokens of the row as it came"),
        Column("truncated", "bool", "never", "only the first `max_tokens` tokens were scored"),
        Column("error", "string", "where the row was scored", "why there is no prediction"),
        Column("checkpoint", "string", "never", "the version of the checkpoint that scored the row"),
    ),
    "attention": (
        Column(ROW, "int64", "never", "as in predictions"),
        Column("id", "as in predictions", "as in predictions", "as in predictions"),
        Column(
            "positions",
            "list of int32",
            _ERROR,
            "where the K largest weights stand in the row, from 0, largest first",
            of_top=True,
        ),
        Column(
            "weights",
            "list of float32",
            _ERROR,
            "one for each token that was scored, which sum to 1; beside `positions`, the K largest of them",
        ),
    ),
}
_NAMED = {part: {column.name: column for column in columns} for part, columns in COLUMNS.items()}


def describe(part: Part, name: str) -> Column:
    """The column of this name in the predictions or the attention; what is none of ours is a kept one."""
    return _NAMED[part].get(name) or _NAMED[part][KEPT]


def columns_of(part: Part, keep: Iterable[str], *, has_positions: bool) -> list[tuple[str, Column]]:
    """The columns of an output with their names, in order. keep: the kept ones. has_positions: with top:K."""
    found = [column for column in COLUMNS[part] if has_positions or not column.of_top]
    kept = [(name, _NAMED["predictions"][KEPT]) for name in keep]
    pairs = [kept if column.name == KEPT else [(column.name, column)] for column in found]
    return [pair for each in pairs for pair in each]


def free_name(wanted: str, columns: Iterable[str]) -> str:
    """A name for one more column beside these: this one or, where one of them has it, one like it."""
    taken = {name.casefold() for name in columns}
    while wanted in taken:
        wanted = f"input_{wanted}"
    return wanted


def with_comments(part: Part, schema: pa.Schema) -> pa.Schema:
    """The schema with the meaning of each column in its field's metadata."""
    fields = [column.with_metadata({COMMENT: describe(part, column.name).comment}) for column in schema]
    return pa.schema(fields, schema.metadata)
