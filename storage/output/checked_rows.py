"""Rows of an output's file under examination: comparing their columns with what was expected, and saying where not.

Owns when two values count as the same, and how a value is shown in a message. Knows nothing about what a column means.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from storage.output.findings import Findings

Flags = npt.NDArray[np.bool_]

_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class CheckedRows:
    """N rows of the file `path`. at: (N,), their positions in it. findings: where what is wrong is told."""

    findings: Findings
    path: str
    table: pa.Table
    at: npt.NDArray[np.int64]

    @classmethod
    def starting(cls, first: int, table: pa.Table, path: str, findings: Findings) -> "CheckedRows":
        """Neighbours, the first of them at the position `first`."""
        return cls(findings, path, table, first + np.arange(table.num_rows))

    def tell(self, wrong: Flags, what: Callable[[int], str]) -> None:
        """wrong: bool (N,). what: says what is wrong with the i-th of N rows."""
        self.findings.add_rows(self.path, self.at, wrong, what)

    def shown(self, name: str, row: int) -> str:
        """A value for a message."""
        return _show(self.table[name][row])

    def only(self, columns: list[str], wanted: Flags) -> "CheckedRows":
        """The rows where `wanted`, bool (N,), with these columns; of some types, such as string views, none can be."""
        table = self.table.select(columns).filter(pa.array(wanted))
        return CheckedRows(self.findings, self.path, table, self.at[wanted])

    def check_equal(self, name: str, expected: pa.ChunkedArray) -> None:
        """expected: N values; a null equals a null, and NaN equals NaN."""
        self.tell(
            _differing(self.table[name], expected),
            lambda row: f"{name} is {self.shown(name, row)}, expected {_show(expected[row])}",
        )

    def check_presence(self, name: str, wanted: Flags) -> Flags:
        """bool (N,): where there is a value. wanted: bool (N,), where there should be one."""
        is_there: Flags = self.table[name].is_valid().to_numpy()
        self.tell(wanted & ~is_there, lambda row: f"{name} is null, expected a value in a row without an error")
        self.tell(is_there & ~wanted, lambda row: f"{name} is {self.shown(name, row)}, expected null beside an error")
        return is_there

    def check_lengths(self, name: str, expected: npt.NDArray[np.int64]) -> Flags:
        """bool (N,): where a list is as long as expected; one that is null is for `check_presence` to tell of."""
        lengths = pc.list_value_length(self.table[name])
        is_right: Flags = pc.fill_null(pc.equal(lengths, pa.array(expected)), True).to_numpy()
        self.tell(~is_right, lambda row: f"{name} has {lengths[row]} values, expected {expected[row]}")
        return is_right


def _show(value: pa.Scalar) -> str:
    """A value in a message, cut short if it is long."""
    try:
        content = value.as_py()
    except (ValueError, OverflowError):
        content = str(value.type)
    text = "null" if content is None else repr(content)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _differing(found: pa.ChunkedArray, expected: pa.ChunkedArray) -> Flags:
    """bool (N,): where two columns of N rows differ. Nulls are equal to each other, and so are NaNs."""
    found, expected = _comparable(found), _comparable(expected)
    differ: Flags = found.is_null().to_numpy() != expected.is_null().to_numpy()
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


def _mark_differing(found: pa.ChunkedArray, expected: pa.ChunkedArray, first: int, differ: Flags) -> None:
    """By halves, so that equal stretches cost one comparison."""
    count = len(expected)
    if found.equals(expected):
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
    return column.cast(pa.large_binary()) if pt.is_binary_view(kind) else column
