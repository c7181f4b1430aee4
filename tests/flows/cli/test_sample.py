"""Which files a sample takes, what it writes, and that the same files always give the same bytes."""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli import sample

NUM_FILES = 11
HEADS = {
    "c.h": b"",
    "RECORD": b"",
    "d.js": b"",
    "e.json": b"",
    "libf.so.1": b"\x7fELF\x02\x01\x01\x00",
    "g.py": b"",
    "h.cpython-311.pyc": b"\xa7\r\r\n\x00\x00\x00\x00",
    "i.pyi": b"",
    "j.md": b"",
}
LABELS = ["c-header", "csv", "javascript", "json", "native-library", "python", "python-bytecode", "python-stub", "text"]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NUM_FILES different files of each of nine types, 101 to 111 bytes long, a folder for each number."""
    monkeypatch.setattr(sample, "MIN_FILES_PER_TYPE", 10)
    root = tmp_path / "one place" / "packages"
    for number in range(NUM_FILES):
        for name in HEADS:
            write_source(root / f"package{number}" / name, number, 101 + number)
    return root


def write_source(path: Path, number: int, num_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = hashlib.shake_128(f"{path.name} {number}".encode()).hexdigest(num_bytes)
    path.write_bytes((HEADS.get(path.name, b"") + noise.encode())[:num_bytes])


def write(out: Path, tree: Path, **options: Any) -> dict[str, int]:
    defaults = {"rows": 500, "fragment_bytes": 37, "days": 7, "start": date(2026, 1, 1), "sources": (tree,)}
    return sample.write_sample(out, **{**defaults, **options})


def rows_of(root: Path) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(path, hive_partitioning=False) for path in sorted(root.rglob("*.parquet")))


def bytes_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_file_for_each_day_and_a_row_for_each_fragment_of_which_the_id_says_where_it_is(
    tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tree / "package3", tree / "copies")  # files of the same content are one group
    counts = write(out, tree, rows=200, days=3, start=date(2024, 2, 28))
    days = ("2024-02-28", "2024-02-29", "2024-03-01")
    tables = [pq.ParquetFile(out / f"date={day}" / "part-0.parquet").read() for day in days]
    assert [table.num_rows for table in tables] == [67, 67, 66]
    names = {"id": pa.string(), "tokens": pa.binary(), "label": pa.string(), "group": pa.string()}
    assert {field.name: field.type for field in tables[0].schema} == names
    rows = rows_of(out)
    assert counts == dict(sorted(Counter(rows["label"]).items()))
    assert (sorted(counts), set(counts.values())) == (LABELS, {22, 23})
    for row in rows.iter_rows(named=True):
        name, offset = row["id"].rsplit("@", 1)
        content = (tree.parent / name).read_bytes()
        assert row["tokens"] == content[int(offset) : int(offset) + 37]
        assert row["group"] == hashlib.blake2b(content, digest_size=16).hexdigest()
    # Two or three fragments of each file, and none twice.
    assert rows["id"].n_unique() == 200
    assert set(Counter(rows["group"]).values()) == {2, 3}


def test_fragments_of_a_file_lie_far_apart_and_a_small_one_gives_what_it_has(tree: Path, tmp_path: Path) -> None:
    write_source(tree / "package5" / "g.py", 5, 100_000)
    write_source(tree / "package6" / "g.py", 6, 39)
    write(tmp_path / "out", tree, rows=9 * NUM_FILES * 20)
    rows = rows_of(tmp_path / "out").filter(pl.col("label") == "python")
    offsets = {
        number: sorted(int(place.rsplit("@")[1]) for place in rows["id"] if f"package{number}/" in place)
        for number in (5, 6)
    }
    assert offsets[6] == [0, 1, 2]
    # Twenty random places would leave a gap below a fifth of the even one in most samples.
    assert len(offsets[5]) in (21, 22)
    assert min(right - left for left, right in pairwise(offsets[5])) > 100_000 / 22 / 5


def test_the_same_files_give_the_same_bytes_wherever_they_lie_and_however_they_are_listed(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "another place" / "packages"
    shutil.copytree(tree, elsewhere, copy_function=shutil.copyfile)
    write(tmp_path / "first", tree)
    walk = os.walk

    def walk_backwards(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for path, subfolders, names in walk(folder):
            subfolders.sort(reverse=True)
            yield path, subfolders, sorted(names, reverse=True)

    for order in (walk_backwards, walk):
        monkeypatch.setattr(os, "walk", order)
        write(elsewhere / "out", elsewhere)  # the second time over its own files, which it does not sample
        assert bytes_of(elsewhere / "out") == bytes_of(tmp_path / "first")


def test_files_that_are_not_what_they_seem_are_passed_over(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tree / "odd"
    for name in ("LICENSE.txt", "torn.pyc", "torn.so", "notzone", "unreadable.py", "site-packages/other.py"):
        write_source(odd / name, 1000, 200)
    write_source(odd / "short.pyi", 1000, 36)
    (odd / "module.cpython-311.opt-1.pyc").write_bytes(HEADS["h.cpython-311.pyc"] + bytes(200))
    (odd / "nul.py").write_bytes(b"x = 1\n" * 20 + b"\0" + b"y = 2\n" * 20)
    write_source(tmp_path / "aside.h", 1000, 200)
    (odd / "link.h").symlink_to(tmp_path / "aside.h")

    def guarded(path: str, *args: object, **kwargs: object) -> object:
        if "unreadable" in path:
            raise PermissionError(13, "Permission denied", path)
        return open(path, *args, **kwargs)

    monkeypatch.setattr(sample, "open", guarded, raising=False)
    write(tmp_path / "out", tree, rows=9 * 50)  # so many that each file of a type gives some
    assert rows_of(tmp_path / "out").filter(pl.col("id").str.contains("/odd/"))["id"].to_list() == []


def test_a_file_that_changes_meanwhile_stops_the_sample_without_half_a_file(tree: Path, tmp_path: Path) -> None:
    def truncate_all(done: int) -> None:
        for path in tree.rglob("*.py"):
            path.write_bytes(b"")

    with pytest.raises(ValueError, match=r"g\.py changed while it was sampled"):
        write(tmp_path / "out", tree, days=2, on_progress=truncate_all)
    assert list(bytes_of(tmp_path / "out")) == ["date=2026-01-01/part-0.parquet"]


def test_what_cannot_be_sampled_or_written_is_said(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    places = sum(101 + number - 37 + 1 for number in range(NUM_FILES))
    with pytest.raises(ValueError, match=rf"{places + 1} different fragments of 37 bytes .* have {places}\."):
        write(out, tree, rows=9 * places + 9)
    for options, message in (
        ({"rows": 11}, "rows must be at least 1 for each of 12 file types and 7 days, not 11"),
        ({"rows": 30, "days": 31}, "rows must be at least 1 for each of 12 file types and 31 days, not 30"),
    ):
        with pytest.raises(ValueError, match=message):
            write(out, tree, **options)
    assert not out.exists()
    write(out, tree, days=3)
    before = bytes_of(out)
    with pytest.raises(ValueError, match=r"would not replace, 1 of them; the first is .*date=2026-01-03"):
        write(out, tree, days=2)
    assert bytes_of(out) == before
    with pytest.raises(ValueError, match=r"c\.h is a file; the sample needs a folder"):
        write(tree / "package0" / "c.h", tree)
    for name in ("c.h", "d.js"):
        for number in range(2):
            (tree / f"package{number}" / name).unlink()
    with pytest.raises(ValueError, match="distinct files of 37 bytes or more each; found 7") as caught:
        write(tmp_path / "few", tree)
    assert "Too few: c-header 9, html 0, javascript 9, png 0, timezone 0. Ask for shorter" in str(caught.value)


def test_the_running_environment_has_enough_types(tmp_path: Path) -> None:
    counts = sample.write_sample(tmp_path, rows=90, fragment_bytes=512, days=7, start=date(2026, 11, 1))
    assert {"c-header", "native-library", "python", "python-stub", "text"} <= counts.keys()
