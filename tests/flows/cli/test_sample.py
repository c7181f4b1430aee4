"""Which files a sample takes, what it writes, and that the same files always give the same bytes."""

import hashlib
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import date
from itertools import pairwise
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli import sample
from flows.cli.sample import SampleError, write_sample

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
LABELS = [
    "c-header",
    "csv",
    "javascript",
    "json",
    "native-library",
    "python",
    "python-bytecode",
    "python-stub",
    "text",
]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NUM_FILES different files of each of nine types, 101 to 111 bytes long, a folder for each number."""
    monkeypatch.setattr(sample, "MIN_FILES_PER_TYPE", 10)
    root = tmp_path / "one place" / "packages"
    for number in range(NUM_FILES):
        (root / f"package{number}").mkdir(parents=True)
        for name in HEADS:
            write_source(root / f"package{number}" / name, number, 101 + number)
    return root


def write_source(path: Path, number: int, num_bytes: int) -> None:
    seed = f"{path.name} {number} ".encode()
    content = b"".join(hashlib.sha256(seed + str(i).encode()).hexdigest().encode() for i in range(num_bytes // 64 + 1))
    path.write_bytes((HEADS.get(path.name, b"") + content)[:num_bytes])


def rows_of(root: Path) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(path, hive_partitioning=False) for path in sorted(root.rglob("*.parquet")))


def bytes_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_file_for_each_day_with_the_promised_columns(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = write_sample(out, rows=200, fragment_bytes=37, days=3, start=date(2024, 2, 28), sources=[tree])
    names = [f"date=2024-02-{day}/part-0.parquet" for day in (28, 29)] + ["date=2024-03-01/part-0.parquet"]
    assert sorted(bytes_of(out)) == names
    assert list(summary.files) == [out / name for name in names]
    tables = [pq.ParquetFile(path).read() for path in summary.files]
    assert [table.num_rows for table in tables] == [67, 67, 66]
    for table in tables:
        assert [(field.name, field.type) for field in table.schema] == [
            ("id", pa.string()),
            ("tokens", pa.binary()),
            ("label", pa.string()),
            ("group", pa.string()),
        ]
    rows = rows_of(out)
    assert set(rows["tokens"].bin.size()) == {37}
    assert rows["id"].n_unique() == summary.num_rows == 200


def test_every_type_has_as_many_rows(tree: Path, tmp_path: Path) -> None:
    summary = write_sample(tmp_path / "out", rows=200, fragment_bytes=37, sources=[tree])
    counts = Counter(rows_of(tmp_path / "out")["label"])
    assert sorted(counts) == LABELS
    assert set(counts.values()) == {22, 23}
    assert summary.rows_per_label == dict(sorted(counts.items()))
    assert summary.left_out == {"html": 0, "png": 0, "timezone": 0}


def test_the_id_says_where_the_tokens_are(tree: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "out", rows=1000, fragment_bytes=37, sources=[tree])
    for row in rows_of(tmp_path / "out").iter_rows(named=True):
        name, offset = row["id"].rsplit("@", 1)
        content = (tree.parent / name).read_bytes()
        assert row["tokens"] == content[int(offset) : int(offset) + 37]
        assert row["group"] == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_files_of_a_type_take_turns(tree: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "out", rows=9 * 29, fragment_bytes=37, sources=[tree])
    rows = rows_of(tmp_path / "out")
    for label in LABELS:
        draws = Counter(rows.filter(pl.col("label") == label)["group"])
        assert len(draws) == NUM_FILES
        assert set(draws.values()) == {2, 3}


def test_a_small_file_gives_what_it_has_and_others_the_rest(tree: Path, tmp_path: Path) -> None:
    small = tree / "package5" / "g.py"
    write_source(small, 5, 39)
    write_sample(tmp_path / "out", rows=9 * NUM_FILES * 10, fragment_bytes=37, sources=[tree])
    rows = rows_of(tmp_path / "out").filter(pl.col("label") == "python")
    assert sorted(rows.filter(pl.col("id").str.contains("package5/"))["id"]) == [
        f"packages/package5/g.py@{offset}" for offset in (0, 1, 2)
    ]
    assert len(rows) == rows["id"].n_unique() == NUM_FILES * 10


def test_single_fragments_lie_anywhere_in_their_files(tree: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "out", rows=9 * NUM_FILES, fragment_bytes=37, sources=[tree])
    offsets = [int(place.rsplit("@", 1)[1]) for place in rows_of(tmp_path / "out")["id"]]
    assert min(offsets) < 10
    assert max(offsets) > 55
    assert len(set(offsets)) > 30


def test_fragments_of_a_file_lie_far_apart_and_on_several_days(tree: Path, tmp_path: Path) -> None:
    large = tree / "package5" / "g.py"
    write_source(large, 5, 100_000)
    write_sample(tmp_path / "out", rows=9 * NUM_FILES * 20, fragment_bytes=37, sources=[tree])
    days_and_offsets = [
        (day, int(place.rsplit("@", 1)[1]))
        for day, path in enumerate(sorted((tmp_path / "out").rglob("*.parquet")))
        for place in pl.read_parquet(path, hive_partitioning=False)["id"]
        if "package5/g.py" in place
    ]
    offsets = sorted(offset for _, offset in days_and_offsets)
    assert len(offsets) in (20, 21)
    # Twenty random places would leave a gap below a fifth of the even one in most samples.
    assert min(right - left for left, right in pairwise(offsets)) > 100_000 / 21 / 5
    assert len({day for day, _ in days_and_offsets}) > 3


def test_the_same_files_give_the_same_bytes_wherever_they_lie_and_however_they_are_listed(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(100, 140):
        write_source(tree / "package0" / f"module{number}.py", number, 101)
    elsewhere = tmp_path / "another place" / "packages"
    shutil.copytree(tree, elsewhere, copy_function=shutil.copyfile)
    write_sample(tmp_path / "first", rows=300, fragment_bytes=37, sources=[tree])

    walk = os.walk

    def walk_backwards(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for path, subfolders, names in walk(folder):
            subfolders.sort(reverse=True)
            yield path, subfolders, sorted(names, reverse=True)

    for order in (walk_backwards, walk):
        monkeypatch.setattr(os, "walk", order)
        write_sample(tmp_path / order.__name__, rows=300, fragment_bytes=37, sources=[elsewhere])
        assert bytes_of(tmp_path / order.__name__) == bytes_of(tmp_path / "first")


def test_writing_again_changes_nothing_and_another_seed_does(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_sample(out, rows=500, fragment_bytes=37, sources=[tree])
    before = bytes_of(out)
    write_sample(out, rows=500, fragment_bytes=37, sources=[tree])
    assert bytes_of(out) == before
    write_sample(out, rows=500, fragment_bytes=37, sources=[tree], seed=1)
    assert not set(bytes_of(out).values()) & set(before.values())


def test_a_sample_inside_a_source_is_not_sampled(tree: Path, tmp_path: Path) -> None:
    out = tree / "out"
    write_sample(out, rows=500, fragment_bytes=37, sources=[tree])
    before = bytes_of(out)
    for number in range(NUM_FILES):
        write_source(out / f"{number}.html", number, 101)
    summary = write_sample(out, rows=500, fragment_bytes=37, sources=[tree])
    assert summary.left_out["html"] == 0
    assert before.items() <= bytes_of(out).items()


def test_copies_of_a_file_count_once(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tree / "copies")
    summary = write_sample(tmp_path / "out", rows=9 * 50, fragment_bytes=37, sources=[tree])
    assert set(summary.files_per_label.values()) == {NUM_FILES}
    files_of_group = defaultdict(set)
    for place, group in rows_of(tmp_path / "out").select("id", "group").iter_rows():
        files_of_group[group].add(place.rsplit("@", 1)[0])
    assert {len(files) for files in files_of_group.values()} == {1}


@pytest.mark.parametrize(
    "name",
    [
        "module.cpython-311.opt-1.pyc",
        "LICENSE.txt",
        "torn.pyc",
        "torn.so",
        "nul.py",
        "notzone",
        "short.pyi",
        "site-packages/other.py",
        "link.h",
        "linked-folder/inside.h",
    ],
)
def test_files_that_are_not_sampled(name: str, tree: Path, tmp_path: Path) -> None:
    odd, aside = tree / "odd", tmp_path / "aside"
    (odd / "site-packages").mkdir(parents=True)
    aside.mkdir()
    write_source(aside / "inside.h", 1000, 200)
    if name == "link.h":
        (odd / name).symlink_to(aside / "inside.h")
    elif name.startswith("linked-folder"):
        (odd / "linked-folder").symlink_to(aside, target_is_directory=True)
    else:
        write_source(odd / name, 1000, 36 if name == "short.pyi" else 200)
    if name.startswith("module"):
        (odd / name).write_bytes(HEADS["h.cpython-311.pyc"] + bytes(200))
    if name.startswith("nul"):
        (odd / name).write_bytes(b"x = 1\n" * 20 + b"\0" + b"y = 2\n" * 20)
    summary = write_sample(tmp_path / "out", rows=9 * 50, fragment_bytes=37, sources=[tree])
    assert set(summary.files_per_label.values()) == {NUM_FILES}
    assert set(summary.left_out.values()) == {0}
    assert not rows_of(tmp_path / "out").filter(pl.col("id").str.contains("/odd/")).height


def test_a_file_that_cannot_be_read_is_done_without(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def guarded(path: str, *args: object, **kwargs: object) -> object:
        if "package7" in path:
            raise PermissionError(13, "Permission denied", path)
        return open(path, *args, **kwargs)

    monkeypatch.setattr(sample, "open", guarded, raising=False)
    summary = write_sample(tmp_path / "out", rows=9 * 50, fragment_bytes=37, sources=[tree])
    assert set(summary.files_per_label.values()) == {NUM_FILES - 1}


def test_a_file_that_changes_meanwhile_stops_the_sample_without_half_a_file(tree: Path, tmp_path: Path) -> None:
    def truncate_all(done: int, total: int) -> None:
        for path in tree.rglob("*.py"):
            path.write_bytes(b"")

    out = tmp_path / "out"
    with pytest.raises(SampleError, match=r"g\.py changed while it was sampled \(it has become shorter\)"):
        write_sample(out, rows=500, fragment_bytes=37, days=2, sources=[tree], on_progress=truncate_all)
    assert list(bytes_of(out)) == ["date=2026-01-01/part-0.parquet"]


def test_row_groups_bound_memory_and_do_not_change_rows(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sample(tmp_path / "one", rows=500, fragment_bytes=37, days=1, sources=[tree])
    monkeypatch.setattr(sample, "ROW_GROUP_ROWS", 120)
    seen: list[tuple[int, int]] = []
    summary = write_sample(
        tmp_path / "many",
        rows=500,
        fragment_bytes=37,
        days=1,
        sources=[tree],
        on_progress=lambda *counts: seen.append(counts),
    )
    metadata = pq.ParquetFile(summary.files[0]).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [120, 120, 120, 120, 20]
    assert seen == [(120, 500), (240, 500), (360, 500), (480, 500), (500, 500)]
    assert rows_of(tmp_path / "many").equals(rows_of(tmp_path / "one"))


def test_too_few_types_are_named_with_their_counts(tree: Path, tmp_path: Path) -> None:
    for name in ("c.h", "d.js"):
        for number in range(2):
            (tree / f"package{number}" / name).unlink()
    with pytest.raises(SampleError) as caught:
        write_sample(tmp_path / "out", rows=500, fragment_bytes=37, sources=[tree])
    assert str(caught.value) == (
        "Expected 8 file types with 10 distinct files of 37 bytes or more each; found 7 (csv, json, "
        f"native-library, python, python-bytecode, python-stub, text) in {tree}. Too few: c-header 9, html 0, "
        "javascript 9, png 0, timezone 0. Ask for shorter fragments, or sample an environment with more packages."
    )
    assert not (tmp_path / "out").exists()


def test_more_rows_than_different_fragments_are_refused(tree: Path, tmp_path: Path) -> None:
    places = sum(101 + number - 37 + 1 for number in range(NUM_FILES))
    write_sample(tmp_path / "out", rows=9 * places, fragment_bytes=37, sources=[tree])
    assert rows_of(tmp_path / "out")["id"].n_unique() == 9 * places
    with pytest.raises(SampleError, match=rf"{places + 1} different fragments of 37 bytes .* have {places}\."):
        write_sample(tmp_path / "out", rows=9 * places + 9, fragment_bytes=37, sources=[tree])


def test_other_parquet_files_are_not_mixed_with(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_sample(out, rows=500, fragment_bytes=37, days=3, sources=[tree])
    before = bytes_of(out)
    with pytest.raises(SampleError, match=r"would not replace, 1 of them; the first is .*date=2026-01-03"):
        write_sample(out, rows=500, fragment_bytes=37, days=2, sources=[tree])
    assert bytes_of(out) == before


def test_a_file_in_place_of_a_folder_is_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"c\.h is a file; the sample needs a folder"):
        write_sample(tree / "package0" / "c.h", rows=500, fragment_bytes=37, sources=[tree])
    with pytest.raises(SampleError, match=r"nowhere is not a folder"):
        write_sample(tmp_path / "out", rows=500, fragment_bytes=37, sources=[tree, tree / "nowhere"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fragment_bytes": 0}, "fragment_bytes must be at least 1, not 0"),
        ({"days": -2}, "days must be at least 1, not -2"),
        ({"rows": 7}, "rows must be at least 1 for each of 8 file types and 7 days, not 7"),
        ({"rows": 30, "days": 31}, "rows must be at least 1 for each of 8 file types and 31 days, not 30"),
        ({"rows": 8}, "rows must be at least 1 for each of 9 file types, not 8"),
    ],
)
def test_bad_arguments_are_refused_with_their_value(
    arguments: dict[str, int], message: str, tree: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_sample(tmp_path / "out", **{"fragment_bytes": 37, "sources": [tree], **arguments})
    assert not (tmp_path / "out").exists()


def test_the_running_environment_has_enough_types(tmp_path: Path) -> None:
    summary = write_sample(tmp_path / "out", rows=90)
    assert len(summary.rows_per_label) >= sample.MIN_TYPES
    assert {"c-header", "native-library", "python", "python-stub", "text"} <= summary.rows_per_label.keys()
