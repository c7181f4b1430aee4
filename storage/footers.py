"""A Parquet file's footer: its schema, its row groups, and a fingerprint of what it holds; and how files are opened.

Reads the end of the file only, once.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from storage.errors import FileError, first_line
from storage.locations import Location

# Footers are small reads that mostly wait, so many at once; more than this gains nothing on object stores.
FOOTER_READERS = 32

MAGIC = b"PAR1"
# Of Spark's timestamps. Nanoseconds, which are Arrow's default, hold the years 1678 to 2261 only.
INT96_UNIT = "us"
# In the metadata of a field: why it can't be read as what it stands for.
NO_TYPE = b"no type"
# Where a writer with Arrow's types keeps those of its columns, in the key-value metadata; and a key that nobody reads.
_ARROW_SCHEMA, _NO_SCHEMA = b"ARROW:schema", b"ARROW_schema"
# One read of this size holds the whole footer of most files.
_TAIL_BYTES = 64 << 10


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says of itself. schema: as `open_parquet` reads it, but for columns of Parquet's ENUM.

    Avro and Protobuf write them. They are text, which Arrow reads as bytes; `as_texts` brings them to this schema.
    A column of a type that Arrow does not have is there as it is stored, and its field has `NO_TYPE` in its metadata.

    `fingerprint` changes with the file's size or footer, not its date.
    """

    metadata: pq.FileMetaData
    schema: pa.Schema
    fingerprint: str

    @property
    def key_values(self) -> dict[str, str]:
        """The file's own key-value metadata."""
        return {key.decode(): value.decode(errors="replace") for key, value in (self.metadata.metadata or {}).items()}


def read_footer(location: Location) -> Footer:
    """Raises FileError if this is no whole Parquet file, FileNotFoundError if there is no file at all."""
    with location.filesystem.open_input_file(location.path) as file:
        size = file.size()
        tail = _read_end(file, min(size, _TAIL_BYTES))
        if size < 12 or tail[-4:] != MAGIC:
            raise FileError(_not_parquet(size, tail))
        footer_bytes = struct.unpack("<I", tail[-8:-4])[0]
        if footer_bytes + 12 > size:
            raise FileError(f"damaged: its footer claims {footer_bytes:,} bytes and the file has {size:,}")
        if footer_bytes + 8 > len(tail):
            tail = _read_end(file, footer_bytes + 8)
    footer = tail[-8 - footer_bytes :]
    try:
        metadata, schema = _parsed(footer)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FileError(f"damaged: its footer can't be read ({first_line(error)})") from error
    fingerprint = hashlib.sha256(struct.pack("<Q", size) + footer).hexdigest()[:32]
    return Footer(metadata, schema, fingerprint)


def _parsed(footer: bytes) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        # The footer alone, dressed as a file: metadata is all that is parsed.
        file = open_parquet(pa.BufferReader(MAGIC + footer))
        return file.metadata, _with_texts(file)
    except pa.ArrowNotImplementedError as error:
        # Such as Polars' integers of 128 bits: the other columns can be read by Parquet's own types.
        file = open_parquet(pa.BufferReader(MAGIC + footer.replace(_ARROW_SCHEMA, _NO_SCHEMA)))
        schema, stored = _with_texts(file), file.metadata.schema
        for leaf in map(stored.column, range(len(stored))):
            place = schema.get_field_index(leaf.path.split(".")[0])
            if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" and leaf.logical_type.type == "NONE" and place >= 0:
                schema = schema.set(place, schema.field(place).with_metadata({NO_TYPE: first_line(error)}))
        return file.metadata, schema


def open_parquet(file: Any, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Ready to be read as every file is read here. file: as Arrow takes it. metadata: of its footer, if it is known."""
    return pq.ParquetFile(
        file,
        metadata=metadata,
        pre_buffer=False,  # so memory stays flat on files of any size
        page_checksum_verification=True,  # where there are any
        coerce_int96_timestamp_unit=INT96_UNIT,
    )


def as_texts(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch that `open_parquet` gave, with what is text by the file's schema and bytes in the batch as text."""
    for place, column in enumerate(batch.schema):
        if pt.is_binary(column.type) and pt.is_string(schema.field(column.name).type):
            batch = batch.set_column(place, column.name, batch.column(place).view(pa.string()))
    return batch


def _with_texts(file: pq.ParquetFile) -> pa.Schema:
    schema, stored = file.schema_arrow, file.metadata.schema
    leaves = (stored.column(place) for place in range(len(stored)))
    enums = {leaf.name for leaf in leaves if leaf.converted_type == "ENUM" and leaf.path == leaf.name}
    for place, column in enumerate(schema):
        if column.name in enums and pt.is_binary(column.type):
            schema = schema.set(place, column.with_type(pa.string()))
    return schema


def _read_end(file: pa.NativeFile, num_bytes: int) -> bytes:
    file.seek(file.size() - num_bytes)
    return bytes(file.read(num_bytes))


def _not_parquet(size: int, tail: bytes) -> str:
    if size == 0:
        return "not a Parquet file: it is empty"
    if tail[-4:] == b"PARE":
        return "an encrypted Parquet file, which can't be read here"
    return (
        f"not a whole Parquet file: its {size:,} bytes do not end in {MAGIC.decode()}. "
        "It may be another format, or cut short"
    )
