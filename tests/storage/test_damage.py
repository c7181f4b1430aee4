"""Damaged Parquet files: each ends in a clear error for its own shard, or in rows; never in a crash or a hang.

ATTNLSTM_DAMAGED_FILES sets how many are tried; `make damage` runs the long form.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FILES = int(os.environ.get("ATTNLSTM_DAMAGED_FILES", "600"))
MEMORY_BYTES = 3 << 30
SECONDS_A_FILE = 2

# Reads every file of a folder as a run would, in a process of its own: a crash would show there.
READER = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
from storage.input.columns import Columns
from storage.errors import FileError, SourceError
from storage.locations import Location
from storage.input.reading import read_shard
from storage.input.shards import ShardLimits, plan_shards
from storage.input.sources import find_source
from storage.input.tokens import TokenRules, decode_tokens

source = find_source(sys.argv[1])
columns = Columns()
for name in sorted(file.relative for file in source.files):
    print(name, end=" ", flush=True)
    plan = plan_shards(find_source(sys.argv[1] + "/" + name), columns, ShardLimits())
    try:
        if plan.unreadable:
            raise FileError(plan.unreadable[0].reason)
        rows = 0
        for shard in plan.shards:
            for table in read_shard(source.root, shard, columns):
                rows += len(decode_tokens(table["tokens"], TokenRules()).usable)
        assert rows == plan.num_rows, "some are missing, or there are too many"
        print("rows", rows, flush=True)
    except FileError as error:
        print("error", error, flush=True)
"""


def test_a_damaged_file_is_an_error_or_rows_and_never_a_crash(tmp_path: Path) -> None:
    whole = _whole_files(tmp_path)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for number, content in enumerate(_damaged(whole, FILES)):
        (damaged / f"{number:06d}.parquet").write_bytes(content)
    reading = subprocess.run(
        [sys.executable, "-c", READER.format(memory=MEMORY_BYTES), str(damaged)],
        capture_output=True,
        text=True,
        timeout=60 + SECONDS_A_FILE * FILES,
    )
    lines = reading.stdout.splitlines()
    assert reading.returncode == 0, f"stopped at {lines[-1:]}: {reading.stderr[-2000:]}"
    assert len(lines) == FILES
    errors = [line for line in lines if " error " in line]
    print(f"{FILES} damaged files: {len(errors)} errors, {FILES - len(errors)} still readable")
    assert len(errors) > FILES // 3
    for line in errors:
        reason = line.split(" error ")[1]
        assert reason.startswith(("damaged: ", "not a", "an encrypted", "column ")), line


def _whole_files(folder: Path) -> list[bytes]:
    chance = random.Random(1)
    rows = [chance.randbytes(chance.randint(1, 90)) for _ in range(300)]
    columns: list[pa.Array] = [
        pa.array(rows, pa.binary()),
        pa.array([row.hex() for row in rows], pa.string()),
        pa.array([list(row) for row in rows], pa.list_(pa.int16())),
    ]
    options: list[dict[str, object]] = [
        {"compression": "snappy"},
        {"compression": "zstd", "write_page_checksum": True, "data_page_size": 512},
        {"compression": "gzip", "use_dictionary": False, "row_group_size": 64},
        {"compression": "none", "data_page_version": "2.0"},
    ]
    files = []
    for column in columns:
        for option in options:
            path = folder / "whole.parquet"
            pq.write_table(pa.table({"id": range(len(column)), "tokens": column}), path, **option)
            files.append(path.read_bytes())
    return files


def _damaged(whole: list[bytes], count: int) -> Iterator[bytes]:
    """Every kind of damage in turn, at places drawn by a fixed seed."""
    chance = random.Random(2)
    kinds: list[Callable[[bytes], bytes]] = [
        lambda content: content[: chance.randrange(len(content))],
        lambda content: _flipped(content, chance, range(len(content)), 1),
        lambda content: _flipped(content, chance, range(len(content)), 40),
        lambda content: _flipped(content, chance, range(len(content) - _footer_bytes(content), len(content)), 1),
        lambda content: _flipped(content, chance, range(4, 60), 2),
        lambda content: _with_footer_of(content, chance.choice(whole)),
        lambda content: content[:-8] + chance.randbytes(4) + content[-4:],
        lambda content: content[: len(content) // 2] + bytes(64) + content[len(content) // 2 + 64 :],
        lambda content: content[:-4] + chance.choice([b"PARE", b"ORC1", b"\0\0\0\0"]),
        lambda content: content[chance.randrange(1, 40) :],
    ]
    for number in range(count):
        yield kinds[number % len(kinds)](whole[chance.randrange(len(whole))])


def _footer_bytes(content: bytes) -> int:
    return int.from_bytes(content[-8:-4], "little") + 8


def _flipped(content: bytes, chance: random.Random, places: range, count: int) -> bytes:
    flipped = bytearray(content)
    for _ in range(count):
        flipped[places[chance.randrange(len(places))]] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def _with_footer_of(content: bytes, other: bytes) -> bytes:
    return content[: -_footer_bytes(content)] + other[-_footer_bytes(other) :]
