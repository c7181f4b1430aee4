"""Labels as classes: which types a label may have, which classes there are, and in which order.

Owns the type that predictions will have, since it is that of the labels. Knows nothing about files or tokens.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from storage.errors import FileError, SourceError

LabelType = Literal["string", "int64", "bool"]

ARROW_TYPES: dict[LabelType, pa.DataType] = {"string": pa.string(), "int64": pa.int64(), "bool": pa.bool_()}
_IN_WORDS: dict[LabelType, str] = {"string": "strings", "int64": "integers", "bool": "bools"}
_SHOWN_BYTES = 40


@dataclass(frozen=True)
class ReadLabels:
    """Labels of some rows of a file. values: int64, or strings, which bools are too.

    label_type: None if a Hive partition says them, which has no type of its own. file: for messages.
    """

    values: pa.Array
    label_type: LabelType | None
    file: str = ""


def check_label_type(field: pa.Field) -> None:
    """Raises FileError unless a column of this type can hold labels. One without any value can."""
    if _label_type(field.type) is None and not pt.is_null(_decoded(field.type)):
        raise FileError(
            f"column {field.name!r} (label) has type {field.type}; a label must be a string, an integer or a bool"
        )


def read_labels(
    column: pa.ChunkedArray, chosen: npt.NDArray[np.bool_], *, name: str, first_row: int, is_typed: bool
) -> ReadLabels:
    """The labels of the chosen rows, all of which have one.

    column: N rows of a type that `check_label_type` accepts. chosen: bool (N,). name: the column's. first_row: position
    in the file of the first of the N. is_typed: False for what a partition says.
    Raises FileError, which names the row, on a label that is not UTF-8 or beyond int64.
    """
    kind = _decoded(column.type)
    if pt.is_dictionary(column.type):
        column = column.cast(kind)
    if not pt.is_integer(kind):
        column = column.cast(pa.large_string())
    values = column.combine_chunks().filter(pa.array(chosen))
    wrong = _first_wrong(values)
    if wrong is not None:
        row = first_row + int(np.flatnonzero(chosen)[wrong[0]])
        raise FileError(f"column {name!r} (label) has a label in row {row} that {wrong[1]}; correct it or make it null")
    if pt.is_integer(kind):
        values = values.cast(pa.int64())
    return ReadLabels(values, _label_type(kind) if is_typed else None)


def number_classes(parts: list[ReadLabels]) -> tuple[tuple[str, ...], npt.NDArray[np.int64], LabelType]:
    """The classes in sorted order, integers by value and strings by code point; each row's class; the labels' type.

    The rows are those of all parts, end to end. Labels that partitions say are of the type that files have; without
    such files they are integers if all of them are, as Polars and DuckDB read them. Raises SourceError if files differ.
    """
    label_type = _common_type([part for part in parts if len(part.values)])
    stored = pa.int64() if label_type == "int64" else pa.large_string()
    labels = pa.chunked_array([part.values.cast(stored) for part in parts], stored)
    distinct = pc.unique(labels)
    ordered = distinct.take(pc.sort_indices(distinct))
    codes = pc.index_in(labels, value_set=ordered).to_numpy().astype(np.int64)
    return tuple(str(name) for name in ordered.to_pylist()), codes, label_type


def _common_type(parts: list[ReadLabels]) -> LabelType:
    """parts: those with labels."""
    found: dict[LabelType, str] = {part.label_type: part.file for part in parts if part.label_type is not None}
    said = [part for part in parts if part.label_type is None]
    for part in said:
        known: LabelType = next(iter(found), "int64")
        if not says(pc.unique(part.values), ARROW_TYPES[known]):
            found.setdefault("string", part.file)
    if len(found) > 1:
        (one, file), (other, another) = sorted(found.items())[:2]
        raise SourceError(
            f"The label column holds {_IN_WORDS[one]} in some files and {_IN_WORDS[other]} in others; use one of the "
            f"two. The first such files are {file} and {another}."
        )
    return next(iter(found), "int64" if said else "string")


def class_values(names: tuple[str, ...], label_type: LabelType) -> pa.Array:
    """The classes as predictions name them: values of the labels' type. names: as `number_classes` gives them."""
    return pa.array(names, pa.string()).cast(ARROW_TYPES[label_type])


def says(values: pa.Array, kind: pa.DataType) -> bool:
    """Whether all values are also of this type, such as texts that are integers as these are usually written."""
    if kind != values.type and not (_label_type(kind) == "string" or _label_type(values.type) == "string"):
        return False
    try:
        same: bool = values.cast(kind).cast(values.type).equals(values)
    except pa.ArrowInvalid:
        return False
    return same


def _first_wrong(values: pa.Array) -> tuple[int, str] | None:
    """(place, what is wrong) of the first value that is no label."""
    if pt.is_uint64(values.type):
        beyond = np.flatnonzero(values.to_numpy(zero_copy_only=False) > np.iinfo(np.int64).max)
        return (int(beyond[0]), f"is beyond int64: {values[beyond[0]]}") if len(beyond) else None
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        for place, text in enumerate(values.cast(pa.large_binary()).to_pylist()):
            try:
                text.decode()
            except UnicodeDecodeError:
                return place, f"is not UTF-8: {text[:_SHOWN_BYTES]!r}"
        raise
    return None


def _label_type(kind: pa.DataType) -> LabelType | None:
    kind = _decoded(kind)
    if pt.is_integer(kind):
        return "int64"
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind):
        return "string"
    return "bool" if pt.is_boolean(kind) else None


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pt.is_dictionary(kind) else kind
