"""Reading a shard as a stream of tables of bounded size, whatever the size of its row groups.

Where the tables are cut depends on the data only, so that what is computed from them does too.
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import FileError
from storage.footer import Footer, read_footer
from storage.location import Location
from storage.shards import Shard

# Rows decoded at once. Small, since a row can be large and footers do not tell (dictionary pages hide it).
_DECODE_ROWS = 1024


def shard_footer(root: Location, shard: Shard) -> Footer:
    """The footer of the shard's file. Raises FileError if the file changed or vanished since the plan was made."""
    try:
        footer = read_footer(root / shard.file)
    except FileNotFoundError:
        raise FileError("vanished while the run was on") from None
    if footer.fingerprint != shard.fingerprint:
        raise FileError("changed while the run was on; run the same command again to score what it holds now")
    return footer


def read_shard(
    root: Location, shard: Shard, columns: list[str], *, chunk_rows: int = 65_536, chunk_bytes: int = 4 << 20
) -> Iterator[pa.Table]:
    """Yield the shard's rows in order, in tables that end once they hold `chunk_rows` or `chunk_bytes`.

    A shard without rows gives one empty table.

    Raises FileError if the file changed since the plan was made, or is damaged.
    """
    footer = shard_footer(root, shard)
    num_rows = 0
    for table in _gather(_decode(root / shard.file, footer, shard, columns), chunk_rows, chunk_bytes):
        num_rows += table.num_rows
        yield table
    if not num_rows:
        yield pa.schema([footer.schema.field(name) for name in columns]).empty_table()
    if num_rows != shard.num_rows:
        raise FileError(f"damaged: its footer promises {shard.num_rows:,} rows and {num_rows:,} could be read")


def _decode(location: Location, footer: Footer, shard: Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
    row_groups = list(range(shard.first_row_group, shard.end_row_group))
    if not row_groups:
        return
    try:
        with location.filesystem.open_input_file(location.path) as source:
            # Without `pre_buffer` memory stays flat on files of any size. Checksums are looked at where a file has any.
            file = pq.ParquetFile(source, metadata=footer.metadata, pre_buffer=False, page_checksum_verification=True)
            yield from file.iter_batches(_DECODE_ROWS, row_groups, columns=columns, use_threads=False)
    except FileNotFoundError:
        raise FileError("vanished while the run was on") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own word: it may pass, unlike a page that can't be decoded
        raise FileError(f"damaged: {str(error).splitlines()[0]}") from error


def _gather(batches: Iterator[pa.RecordBatch], chunk_rows: int, chunk_bytes: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    rows = num_bytes = 0
    for batch in batches:
        held.append(batch)
        rows, num_bytes = rows + batch.num_rows, num_bytes + batch.nbytes
        if rows >= chunk_rows or num_bytes >= chunk_bytes:
            yield pa.Table.from_batches(held)
            held, rows, num_bytes = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)
