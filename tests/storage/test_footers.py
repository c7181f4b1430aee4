"""What a footer tells, and that a file without a whole one is told apart, whatever is wrong with it."""

import struct
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import FileError
from storage.footers import read_footer
from storage.locations import Location


@pytest.fixture
def content(put: Callable[..., Path]) -> bytes:
    return put("a.parquet", [bytes([i]) * (i % 7) for i in range(50)], row_group_size=20).read_bytes()


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[[bytes], str]:
    """What is said of a file with these bytes."""

    def refusal(content: bytes) -> str:
        (tmp_path / "bad.parquet").write_bytes(content)
        with pytest.raises(FileError) as refused:
            read_footer(Location.parse(tmp_path / "bad.parquet"))
        return str(refused.value)

    return refusal


def test_schema_row_groups_and_key_values(put: Callable[..., Path]) -> None:
    path = put("a.parquet", pa.chunked_array([pa.array([[1], [2], [3]])]), row_group_size=2)
    footer = read_footer(Location.parse(path))
    assert footer.schema.names == ["tokens"]
    assert [footer.metadata.row_group(i).num_rows for i in range(footer.metadata.num_row_groups)] == [2, 1]
    assert "ARROW:schema" in footer.key_values


def test_footer_larger_than_the_first_read(put: Callable[..., Path]) -> None:
    path = put("wide.parquet", [b"a"], **{f"column{i}": [i] for i in range(1000)})
    assert len(read_footer(Location.parse(path)).schema) == 1001


def test_missing_file_is_no_bad_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_footer(Location.parse(tmp_path / "missing"))


def test_fingerprint_follows_the_content_and_not_the_date(put: Callable[..., Path], tmp_path: Path) -> None:
    path = put("a.parquet", [b"ab"])
    first = read_footer(Location.parse(path)).fingerprint
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    assert read_footer(Location.parse(copy)).fingerprint == first
    put("a.parquet", [b"ac"])
    assert read_footer(Location.parse(path)).fingerprint != first


def test_fingerprint_follows_the_size(content: bytes, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(content)
    two.write_bytes(content[:4] + b"x" + content[4:])
    assert read_footer(Location.parse(one)).fingerprint != read_footer(Location.parse(two)).fingerprint


def test_other_formats_are_named_as_such(refusal: Callable[[bytes], str], content: bytes) -> None:
    assert refusal(b"") == "not a Parquet file: it is empty"
    assert refusal(b"id,tokens\n1,abc\n") == (
        "not a whole Parquet file: its 16 bytes do not end in PAR1. It may be another format, or cut short"
    )
    assert refusal(content[:-4] + b"PARE") == "an encrypted Parquet file, which can't be read here"
    assert refusal(b"PAR1").startswith("not a whole Parquet file")


def test_lying_footer_length(refusal: Callable[[bytes], str], content: bytes) -> None:
    def claim(length: int) -> str:
        return refusal(content[:-8] + struct.pack("<I", length) + b"PAR1")

    assert claim(2**32 - 1) == f"damaged: its footer claims 4,294,967,295 bytes and the file has {len(content):,}"
    for length in (0, 1, 100, len(content) - 12):
        assert claim(length).startswith("damaged: its footer can't be read (")


def test_name_that_is_no_text_is_damage(refusal: Callable[[bytes], str], tmp_path: Path) -> None:
    pq.write_table(pa.table({"tokens": [b"a"]}), tmp_path / "a", store_schema=False)
    content = (tmp_path / "a").read_bytes()
    assert refusal(content.replace(b"tokens", b"tok\xffns")).startswith("damaged: its footer can't be read (")
