"""What users type becomes a place, and a file appears there whole or not at all."""

import os
import re
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from storage.errors import SourceError
from storage.locations import Location, as_uri, below, holds_credentials, in_store_of, without_credentials


@pytest.fixture
def store(tmp_path: Path) -> Location:
    """A filesystem that is not the local one, as object stores are."""
    (tmp_path / "bucket").mkdir()
    return Location(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "bucket")


@pytest.mark.parametrize("typed", ["a/b/", "~/a/b", "{folder}/a/b", "file://{folder}/a/b/"])
def test_what_is_typed_is_a_local_path(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    place = Location.parse(typed.format(folder=tmp_path))
    assert (place.path, place.is_local) == (f"{tmp_path}/a/b", True)


def test_unknown_scheme_is_refused_by_name() -> None:
    with pytest.raises(SourceError, match=r"^ftp:// is not a location that can be opened here .*Use a path, or a URI"):
        Location.parse("ftp://host/data")


def test_message_of_a_store_shows_no_credentials() -> None:
    place = Location.parse("s3://KEY:SECRET@bucket/data?region=eu-west-1&endpoint_override=localhost:9")
    assert str(place / "a.parquet") == "s3://bucket/data/a.parquet"


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("s3://KEY:SECRET@bucket/data?region=eu-west-1", "s3://bucket/data"),
        ("s3://KEY@bucket/data", "s3://bucket/data"),
        ("s3://KEY:SEC/RET@bucket/data", "s3://bucket/data"),
        ("s3://KEY:123/SECRET@bucket/data", "s3://bucket/data"),
        ("abfs://account:SECRET@container/data", "abfs://container/data"),
        ("abfs://container@account/data?client_secret=SECRET&tenant_id=7", "abfs://account/data"),
        ("abfs://container@account/data?tenant_id=7&client_secret=SECRET", "abfs://account/data"),
        ("hdfs://user:SECRET@namenode:8020/data", "hdfs://namenode:8020/data"),
        ("s3://KEY:SECRET", "s3://..."),  # the bucket was forgotten
        ("s3://KEY:SECRET/data", "s3://..."),
        ("s3://KEY:SEC?RET@bucket/data", "s3://..."),
        ("s3://KEY:SEC@?RET@bucket/data", "s3://..."),
        ("/data/a:b@c?token=1", "/data/a:b@c?token=1"),  # from here on without credentials
        ("s3://bucket/a@b:c/*.parquet?region=eu-west-1", "s3://bucket/a@b:c/*.parquet"),
        ("s3://bucket", "s3://bucket"),
        ("gs://anonymous@bucket/data", "gs://bucket/data"),
        ("hdfs://user@namenode:8020/data", "hdfs://namenode:8020/data"),
        ("abfss://container@account.dfs.core.windows.net/data", "abfss://account.dfs.core.windows.net/data"),
    ],
)
def test_credentials_and_nothing_else_are_found_and_left_out(typed: str, shown: str) -> None:
    assert holds_credentials(typed) == ("KEY" in typed or "SECRET" in typed)
    assert without_credentials(typed) == shown


def test_links_to_places_have_no_bare_spaces_or_brackets() -> None:
    assert as_uri("/out (1)/a=b") == "file:///out%20%281%29/a%3Db"
    assert as_uri("s3://bucket/out (1)/a.json") == "s3://bucket/out%20%281%29/a.json"


@pytest.mark.parametrize("name", ["h=Brand#21", "a b", "a%3Ab", "a+b", "a?b", "a[1]*", "é", "100%"])
def test_names_become_part_of_a_uri_and_come_out_of_it_as_they_were(name: str) -> None:
    assert Location.parse(below("file:///data?region=x", name)).path == f"/data/{name}"
    assert Location.parse(below("/data", name)).path == f"/data/{name}"
    assert Location.parse(as_uri(f"/data/{name}")).path == f"/data/{name}"
    if "?" not in name and not re.search("%[0-9A-F]{2}", name):
        assert Location.parse(f"file:///data/{name}").path == f"/data/{name}"


def test_long_names_have_temporary_names_of_their_own(tmp_path: Path) -> None:
    for name in ("x" * 247 + ".parquet", "é" * 123 + ".parquet"):
        place = Location.parse(tmp_path) / name
        with place.replacing() as temporary:
            temporary.write_bytes(b"content")
            assert len(temporary.name.encode()) < 255
        assert place.read_bytes() == b"content"


def test_paths_below_the_root_folder_have_no_empty_part() -> None:
    root = Location.parse("/")
    assert (root / "a.parquet").path == "/a.parquet"
    assert root.relative("/data/a.parquet") == "data/a.parquet"


@pytest.mark.parametrize("kind", ["local", "store"])
def test_exception_leaves_the_old_file_and_nothing_else(kind: str, tmp_path: Path, store: Location) -> None:
    (tmp_path / "bucket/file").write_bytes(b"old")
    place = (store if kind == "store" else Location.parse(tmp_path / "bucket")) / "file"

    def write_half() -> None:
        with place.replacing() as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert place.read_bytes() == b"old"
    assert os.listdir(tmp_path / "bucket") == ["file"]


def test_nothing_shows_under_the_name_until_the_block_ends(tmp_path: Path) -> None:
    place = Location.parse(tmp_path / "file")
    with place.replacing() as temporary:
        temporary.write_bytes(b"all of it")
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert not place.is_file()
    assert place.read_bytes() == b"all of it"


def test_store_gets_the_file_in_one_upload(store: Location) -> None:
    content = os.urandom((8 << 20) + 3)
    (store / "file").write_bytes(content)
    assert (store / "file").read_bytes() == content


def test_write_makes_folders_and_replaces_and_a_missing_file_is_deleted_already(tmp_path: Path) -> None:
    place = Location.parse(tmp_path) / "new/folder/file"
    assert (Location.parse(tmp_path) / "new").walk() == []
    place.write_bytes(b"one")
    place.write_bytes(b"two")
    assert place.read_bytes() == b"two"
    assert os.listdir(tmp_path / "new/folder") == ["file"]
    place.delete()
    place.delete()
    assert not place.is_file()


@pytest.mark.parametrize(
    ("place", "other", "typed"),
    [
        ("s3://b/data", "s3://k:s@b/out?scheme=http&endpoint_override=h:9", "s3://k:s@b/data?scheme=http&endpoint_override=h:9"),
        ("s3://b/data", "s3://b/out?endpoint_override=h", "s3://b/data?endpoint_override=h"),
        ("s3://b/data", "s3://b/out?region=eu-west-1", "s3://b/data"),
        ("/data", "s3://b/out?endpoint_override=h", "/data"),
        ("s3://b/data", "/out", "s3://b/data"),
    ],
)  # fmt: skip
def test_recorded_place_is_looked_for_at_the_endpoint_of_what_recorded_it(place: str, other: str, typed: str) -> None:
    assert in_store_of(place, other) == typed
