"""The input contract for tokens: any column type that can hold token sequences, as numpy values and offsets.

Owns which types are accepted and which rows can't be scored, and why. Vectorised: the work per row is done in
numpy and Arrow. Knows nothing about files.
"""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from storage.errors import FileError

ACCEPTED = "binary, string, or a list of integers"
_OUTSIDE, _TOO_LONG = "a token id outside", "longer than"
_OUTSIDE_ERROR = re.compile(rf"{_OUTSIDE} 0\.\.(\d+)")
_TOO_LONG_ERROR = re.compile(rf"{_TOO_LONG} (\d+) tokens")

ANY_VOCABULARY = 2**31
"""Larger than any: for rows of which an output says which can be scored."""

_NULLS = pa.list_(pa.uint8())
"""How a column of type null, or of lists of it, is read: pandas and Polars write them where no row has a token."""


@dataclass(frozen=True)
class TokenRows:
    """The token sequences of N input rows, of which M can be scored.

    values: unsigned or signed integers (num_tokens,), the tokens of the M usable rows end to end.
    offsets: int64 (M + 1,). Usable row i holds values[offsets[i]:offsets[i + 1]], at least one token.
    usable: bool (N,), which of the input rows those are.
    num_tokens: int64 (N,), tokens of each input row as it came; -1 for a null.
    truncated: bool (N,), rows of which only the first `max_tokens` are in `values`.
    errors: string array of N, null for usable rows, else why the row has no prediction.
    """

    values: npt.NDArray[np.integer]
    offsets: npt.NDArray[np.int64]
    usable: npt.NDArray[np.bool_]
    num_tokens: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]
    errors: pa.StringArray

    def without(self, excluded: npt.NDArray[np.bool_], reason: str) -> "TokenRows":
        """The same rows, of which those of `excluded`, bool (N,), can't be scored for another reason than tokens."""
        kept = ~excluded[self.usable]
        lengths = np.diff(self.offsets)
        return TokenRows(
            values=self.values[np.repeat(kept, lengths)],
            offsets=np.concatenate(([0], np.cumsum(lengths[kept]))).astype(np.int64),
            usable=self.usable & ~excluded,
            num_tokens=self.num_tokens,
            truncated=self.truncated & ~excluded,
            errors=pc.if_else(pa.array(excluded), reason, self.errors),
        )


@dataclass(frozen=True)
class TokenRules:
    """What makes a row usable.

    num_tokens_known: token ids run from 0 to this, exclusive (the vocabulary without padding).
    max_tokens: longest row that is scored whole; None for no limit.
    long_rows: what happens to longer ones, "truncate" (the first max_tokens are scored) or "error".
    """

    num_tokens_known: int = 256
    max_tokens: int | None = None
    long_rows: str = "truncate"

    def __post_init__(self) -> None:
        if self.num_tokens_known < 1:
            raise ValueError(f"num_tokens_known must be at least 1, not {self.num_tokens_known}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if self.long_rows not in ("truncate", "error"):
            raise ValueError(f"long_rows must be 'truncate' or 'error', not {self.long_rows!r}")


def check_token_type(column: str, kind: pa.DataType) -> None:
    """Raises FileError unless a column of this type can hold token sequences."""
    if not _is_bytes(_decoded(kind)) and not _is_integer_list(_decoded(kind)):
        raise FileError(f"column {column!r} has type {kind}; tokens must be {ACCEPTED}")


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type has bytes or text for tokens, rather than lists of ids."""
    return _is_bytes(_decoded(kind))


def decode_tokens(column: pa.ChunkedArray, rules: TokenRules) -> TokenRows:
    """Decode a column that `check_token_type` accepts. One chunk of binary whose rows are all usable is not copied."""
    column = _readable(column)
    is_null = column.is_null().to_numpy()
    values: npt.NDArray[np.integer]
    if _is_bytes(_decoded(column.type)):
        values, offsets = _from_bytes(column)
        in_vocabulary: npt.NDArray[np.bool_] | None = None
        if rules.num_tokens_known < 256:
            in_vocabulary = values < rules.num_tokens_known
        holds_null = np.zeros(len(column), dtype=bool)
    else:
        values, offsets, token_is_null = _from_lists(column)
        in_vocabulary = (values >= 0) & (values < rules.num_tokens_known)
        if token_is_null is None:
            holds_null = np.zeros(len(column), dtype=bool)
        else:
            in_vocabulary |= token_is_null
            holds_null = _any_in_row(token_is_null, offsets)
        # Ids that pass fit easily; a narrow type keeps what crosses to the engines small.
        values = values.astype(np.min_scalar_type(rules.num_tokens_known - 1), copy=False)
    lengths = np.diff(offsets)
    outside = np.zeros(len(column), dtype=bool)
    if in_vocabulary is not None and not in_vocabulary.all():
        outside = _any_in_row(~in_vocabulary, offsets)
    too_long = np.zeros(len(column), dtype=bool)
    if rules.max_tokens is not None:
        too_long = lengths > rules.max_tokens

    # Later reasons overwrite earlier ones, so the most basic comes last.
    reason = np.zeros(len(column), dtype=np.int8)
    if rules.long_rows == "error":
        reason[too_long] = 1
    reason[outside] = 2
    reason[holds_null] = 3
    reason[lengths == 0] = 4
    reason[is_null] = 5
    usable = reason == 0
    truncated = too_long & usable
    kept = np.where(usable, np.minimum(lengths, rules.max_tokens or np.iinfo(np.int64).max), 0)
    if not np.array_equal(kept, lengths):
        values = values[_head_of_rows(offsets, kept)]
    return TokenRows(
        values=values,
        offsets=np.concatenate(([0], np.cumsum(kept[usable]))).astype(np.int64),
        usable=usable,
        num_tokens=np.where(is_null, -1, lengths),
        truncated=truncated,
        errors=_reasons(rules).take(pa.array(reason)),
    )


def may_be_mended(error: str, rules: TokenRules) -> bool:
    """Whether a row with this error may be usable by other rules than those that it was judged by.

    That is one of a token id which the vocabulary has now, or one that was too long and is not too long by now. What
    else is wrong is wrong with the input.
    """
    if known := vocabulary_in(error):
        return rules.num_tokens_known > known
    if too_long := _TOO_LONG_ERROR.fullmatch(error):
        return rules.long_rows != "error" or rules.max_tokens is None or rules.max_tokens > int(too_long[1])
    return False


def vocabulary_in(error: str) -> int | None:
    """How many token ids were known where a row got this error; None if the error is another one."""
    outside = _OUTSIDE_ERROR.fullmatch(error)
    return int(outside[1]) + 1 if outside else None


def any_too_long(rows: TokenRows) -> bool:
    """Whether a row can't be scored because it is too long."""
    return bool(pc.any(pc.starts_with(rows.errors, _TOO_LONG)).as_py())


def outside_vocabulary(rows: TokenRows) -> npt.NDArray[np.bool_]:
    """bool (N,): the input rows that can't be scored because of a token id that the vocabulary lacks."""
    is_outside: npt.NDArray[np.bool_] = pc.fill_null(pc.starts_with(rows.errors, _OUTSIDE), False).to_numpy(
        zero_copy_only=False
    )
    return is_outside


def token_extent(column: pa.ChunkedArray, chosen: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """The least and the greatest token id of some rows. chosen: bool (N,), which rows; they have at least a token."""
    column = _readable(column)
    values: npt.NDArray[np.integer]
    if _is_bytes(_decoded(column.type)):
        values, offsets = _from_bytes(column)
    else:
        values, offsets, _ = _from_lists(column)
    values = values[np.repeat(chosen, np.diff(offsets))]
    return int(values.min()), int(values.max())


def _reasons(rules: TokenRules) -> pa.StringArray:
    return pa.array(
        [
            None,
            f"{_TOO_LONG} {rules.max_tokens} tokens",
            f"{_OUTSIDE} 0..{rules.num_tokens_known - 1}",
            "a null among the tokens",
            "no tokens",
            "tokens are null",
        ],
        pa.string(),
    )


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of an extension type, such as Parquet's JSON, as what it is stored as, and one of nulls as lists."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    if pt.is_null(column.type):
        return pa.chunked_array([pa.nulls(len(column), _NULLS)])
    if _is_list(column.type) and pt.is_null(column.type.value_type):
        return pa.chunked_array([_lists_of_nulls(chunk) for chunk in column.chunks], _NULLS)
    return column


def _lists_of_nulls(lists: pa.Array) -> pa.ListArray:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.nulls(offsets[-1].as_py(), pa.uint8()), mask=lists.is_null())


def _decoded(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pt.is_null(kind):
        return _NULLS
    return kind.value_type if pt.is_dictionary(kind) else kind


def _plain_chunks(column: pa.ChunkedArray) -> list[pa.Array]:
    return [_plain(chunk) if pt.is_dictionary(chunk.type) else chunk for chunk in column.chunks]


def _plain(chunk: pa.DictionaryArray) -> pa.Array:
    values = chunk.dictionary
    if _is_bytes(values.type):
        values = values.cast(pa.large_binary())  # pyarrow 26 decodes no dictionary of views
    return pa.DictionaryArray.from_arrays(chunk.indices, values).dictionary_decode()


def _is_bytes(kind: pa.DataType) -> bool:
    checks = (pt.is_binary, pt.is_large_binary, pt.is_binary_view, pt.is_fixed_size_binary)
    texts = (pt.is_string, pt.is_large_string, pt.is_string_view)
    return any(check(kind) for check in checks + texts)


def _is_integer_list(kind: pa.DataType) -> bool:
    if not _is_list(kind):
        return False
    element = _decoded(kind.value_type)
    return bool(pt.is_integer(element) or pt.is_null(kind.value_type))


def _is_list(kind: pa.DataType) -> bool:
    lists = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list, pt.is_list_view, pt.is_large_list_view)
    return any(check(kind) for check in lists)


def _from_bytes(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    # 64-bit offsets hold whatever fits in memory, and `large_binary` is what every other kind casts to.
    chunks = [chunk.cast(pa.large_binary()) for chunk in _plain_chunks(column)]
    if not len(column):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    array = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    _, offset_buffer, value_buffer = array.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64, len(array) + 1, array.offset * 8)
    values = np.frombuffer(value_buffer, np.uint8) if value_buffer else np.zeros(0, np.uint8)
    return values[offsets[0] : offsets[-1]], offsets - offsets[0]


def _from_lists(
    column: pa.ChunkedArray,
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
    # Not a cast to one list type: casting list views that hold nulls fails in pyarrow 26. `flatten` leaves out
    # what null rows hide, in every kind of list, and so do the lengths.
    chunks = _plain_chunks(column)
    if not chunks:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64), None
    lengths = pa.chunked_array([pc.fill_null(pc.list_value_length(chunk), 0) for chunk in chunks]).to_numpy()
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    tokens = pa.chunked_array(_plain_chunks(pa.chunked_array([chunk.flatten() for chunk in chunks])))
    if not tokens.null_count:
        return tokens.to_numpy(), offsets, None
    return pc.fill_null(tokens, 0).to_numpy(), offsets, tokens.is_null().to_numpy()


def _any_in_row(flags: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """bool (N,): whether any token of the row is flagged. flags: bool (num_tokens,)."""
    before = np.concatenate(([0], np.cumsum(flags)))
    return before[offsets[1:]] > before[offsets[:-1]]


def _head_of_rows(offsets: npt.NDArray[np.int64], kept: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """bool (num_tokens,): True for the first kept[i] tokens of each row i."""
    lengths = np.diff(offsets)
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return position < np.repeat(kept, lengths)
