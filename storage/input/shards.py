"""Planning: which rows one task scores, decided from footers alone.

A shard is a file, or a range of a large file's row groups, and has one output file of its own. The plan depends
on the input and the limits only, so every run cuts the same input the same way.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import FileError, SourceError, first_line
from storage.footers import FOOTER_READERS, Footer, read_footer
from storage.input.columns import Columns
from storage.input.sources import Source, SourceFile
from storage.locations import Location


@dataclass(frozen=True)
class ShardLimits:
    """A shard ends at the row group with which it reaches one of these. bytes: uncompressed, of all columns."""

    rows: int = 1_000_000
    bytes: int = 256 << 20

    def __post_init__(self) -> None:
        for name in ("rows", "bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"shard {name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Shard:
    """Row groups `first_row_group` up to, not including, `end_row_group` of one input file.

    file: the input's name relative to the source's root. name: the output's, without a folder, e.g.
    `date=2026-11-01/part-0.parquet`. first_row: position in the file of the shard's first row. token_bytes: an upper
    bound, the uncompressed bytes of its row groups.
    """

    file: str
    name: str
    fingerprint: str
    first_row_group: int
    end_row_group: int
    first_row: int
    num_rows: int
    token_bytes: int


@dataclass(frozen=True)
class UnreadableFile:
    """An input file that can't be planned, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class ShardPlan:
    """notes: what is worth a word although nothing fails, such as a column `ID` beside no `id`.

    types: of id and kept columns, each combination that a file has once. files_of_types: which files have each.
    """

    shards: tuple[Shard, ...]
    unreadable: tuple[UnreadableFile, ...]
    notes: tuple[str, ...] = ()
    types: tuple[dict[str, pa.DataType], ...] = ()
    files_of_types: tuple[tuple[str, ...], ...] = ()

    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)


def unreadable_in_words(root: Location, unreadable: Sequence[UnreadableFile]) -> str:
    """The first of the files that can't be read, one at least, with the reason, and how many more there are."""
    first, others = unreadable[0], len(unreadable) - 1
    more = f" ({others} more file{'s' * (others > 1)} can't be read either)" if others else ""
    return f"{root / first.file}: {first.reason}{more}"


def plan_shards(source: Source, columns: Columns, limits: ShardLimits) -> ShardPlan:
    """Cut every readable file of the source into shards, in order of name and position.

    Raises SourceError if two inputs would have the same output name (`a` and `a.parquet`).
    """
    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        planned = list(pool.map(lambda file: _plan_file(source, file, columns, limits), source.files))
    shards = [shard for file in planned for shard in file.shards]
    _refuse_shared_names(shards)
    unreadable = tuple(file.unreadable for file in planned if file.unreadable is not None)
    overlooked = Counter(file.overlooked_id for file in planned if file.overlooked_id is not None)
    notes = tuple(
        f"{'1 file has' if count == 1 else f'{count:,} files have'} {each}" for each, count in overlooked.items()
    )
    types: dict[tuple[tuple[str, pa.DataType], ...], list[str]] = {}
    for file in planned:
        if file.shards:
            types.setdefault(tuple(file.types.items()), []).append(file.shards[0].file)
    return ShardPlan(tuple(shards), unreadable, notes, tuple(map(dict, types)), tuple(map(tuple, types.values())))


@dataclass(frozen=True)
class _PlannedFile:
    """overlooked_id, types: see `Columns.overlooked_id` and `Columns.carried_types`."""

    shards: tuple[Shard, ...] = ()
    unreadable: UnreadableFile | None = None
    overlooked_id: str | None = None
    types: dict[str, pa.DataType] = field(default_factory=dict)


def _plan_file(source: Source, file: SourceFile, columns: Columns, limits: ShardLimits) -> _PlannedFile:
    if file.problem is not None:
        return _PlannedFile(unreadable=UnreadableFile(file.relative, file.problem))
    try:
        footer = read_footer(source.location(file))
        columns.to_read(footer.schema, file.relative)
        shards = tuple(_cut(file.relative, footer, limits))
    except FileError as error:
        return _PlannedFile(unreadable=UnreadableFile(file.relative, str(error)))
    except OSError as error:
        return _PlannedFile(unreadable=UnreadableFile(file.relative, f"can't be opened: {error}"))
    except (pa.ArrowException, ValueError) as error:
        return _PlannedFile(unreadable=UnreadableFile(file.relative, f"can't be read: {first_line(error)}"))
    types = columns.carried_types(footer.schema, file.relative)
    return _PlannedFile(shards, overlooked_id=columns.overlooked_id(footer.schema), types=types)


def _cut(file: str, footer: Footer, limits: ShardLimits) -> Iterator[Shard]:
    sizes = [_row_group_size(footer.metadata, group) for group in range(footer.metadata.num_row_groups)]
    ends, rows, num_bytes = [], 0, 0
    for group, (group_rows, group_bytes) in enumerate(sizes, start=1):
        rows, num_bytes = rows + group_rows, num_bytes + group_bytes
        if rows >= limits.rows or num_bytes >= limits.bytes or group == len(sizes):
            ends.append(group)
            rows = num_bytes = 0
    stem = file.removesuffix(".parquet")
    first, first_row = 0, 0
    for index, end in enumerate(ends or [0]):
        part = f"-{index:05d}-of-{len(ends):05d}" if len(ends) > 1 else ""
        num_rows = sum(rows for rows, _ in sizes[first:end])
        yield Shard(
            file=file,
            name=f"{stem}{part}.parquet",
            fingerprint=footer.fingerprint,
            first_row_group=first,
            end_row_group=end,
            first_row=first_row,
            num_rows=num_rows,
            token_bytes=sum(size for _, size in sizes[first:end]),
        )
        first, first_row = end, first_row + num_rows


def _row_group_size(metadata: pq.FileMetaData, group: int) -> tuple[int, int]:
    """(rows, uncompressed bytes)."""
    # Not summed over columns: in pyarrow 26 `RowGroupMetaData.column` ends the process, by an exception that C++
    # throws and nobody catches, when a damaged footer's size statistics contradict its schema.
    row_group = metadata.row_group(group)
    return row_group.num_rows, row_group.total_byte_size


def _refuse_shared_names(shards: list[Shard]) -> None:
    owners: dict[str, str] = {}
    for shard in shards:
        other = owners.setdefault(shard.name, shard.file)
        if other != shard.file:
            raise SourceError(f"{other} and {shard.file} would both be written to {shard.name}. Rename one of them.")
