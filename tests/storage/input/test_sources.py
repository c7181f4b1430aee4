"""Which files a source names, and under which relative names."""

import os
from pathlib import Path

import pytest

from storage.errors import SourceError
from storage.input.sources import find_source, partition_values


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    names = """
        a.parquet b.parq c.pq d.csv .hidden.parquet _SUCCESS _temporary/x.parquet .cache/x.parquet
        date=2026-11-01/part-0.parquet date=2026-11-01/part-1.parquet date=2026-11-02/part-0.parquet
        date=2026-11-02/hour=7/part-0.parquet date=2026-11-02/_tmp/part-9.parquet
    """
    for name in names.split():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def names_of(source: Path | str) -> list[str]:
    return [file.relative for file in find_source(str(source)).files]


def test_folder_gives_parquet_in_order_and_passes_over_hidden_names(tree: Path) -> None:
    assert names_of(tree) == [
        "a.parquet",
        "b.parq",
        "c.pq",
        "date=2026-11-01/part-0.parquet",
        "date=2026-11-01/part-1.parquet",
        "date=2026-11-02/hour=7/part-0.parquet",
        "date=2026-11-02/part-0.parquet",
    ]


@pytest.mark.parametrize(
    ("below", "scope", "names"),
    [
        ("date=2026-11-01", "date=2026-11-01", ["date=2026-11-01/part-0.parquet", "date=2026-11-01/part-1.parquet"]),
        ("date=2026-11-01/", "date=2026-11-01", ["date=2026-11-01/part-0.parquet", "date=2026-11-01/part-1.parquet"]),
        ("date=2026-11-02/hour=7", "date=2026-11-02/hour=7", ["date=2026-11-02/hour=7/part-0.parquet"]),
        ("date=2026-11-01/part-1.parquet", "date=2026-11-01/part-1.parquet", ["date=2026-11-01/part-1.parquet"]),
        ("date=2026-11-01/*-1.parquet", "date=2026-11-01", ["date=2026-11-01/part-1.parquet"]),
    ],
)
def test_slice_of_a_partitioned_dataset_keeps_the_names_of_the_whole(
    tree: Path, below: str, scope: str, names: list[str]
) -> None:
    found = find_source(f"{tree}/{below}")
    assert (found.root.path, found.scope) == (str(tree), scope)
    assert [file.relative for file in found.files] == names
    assert all(found.location(file).is_file() for file in found.files)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.parquet", ["a.parquet"]),
        ("*", ["a.parquet", "b.parq", "c.pq", "d.csv"]),
        ("?.pq", ["c.pq"]),
        ("[ab].parq*", ["a.parquet", "b.parq"]),
        ("[!ab].p*", ["c.pq"]),
        ("[a-c].p[!q]", []),
        ("[a-c].p?", ["c.pq"]),
        ("date=*/part-0.parquet", ["date=2026-11-01/part-0.parquet", "date=2026-11-02/part-0.parquet"]),
        (
            "**/part-0.parquet",
            [
                "date=2026-11-01/part-0.parquet",
                "date=2026-11-02/hour=7/part-0.parquet",
                "date=2026-11-02/part-0.parquet",
            ],
        ),
        ("**/a.parquet", ["a.parquet"]),
        ("date=2026-11-02/**", ["date=2026-11-02/hour=7/part-0.parquet", "date=2026-11-02/part-0.parquet"]),
        ("date=2026-11-0[!2]?part-0.parquet", []),
        ("date=2026-11-01[!x]part-0.parquet", []),
    ],
)
def test_glob(tree: Path, pattern: str, names: list[str]) -> None:
    if not names:
        with pytest.raises(SourceError, match="No file matches the source"):
            find_source(f"{tree}/{pattern}")
        return
    assert names_of(f"{tree}/{pattern}") == names


def test_relative_glob_and_file_uri_glob(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert names_of("*.parquet") == names_of(f"file://{tree}/*.parquet") == ["a.parquet"]
    assert names_of("../data/*.parquet") == ["a.parquet"]


def test_question_mark_in_a_uri_begins_its_query(tree: Path) -> None:
    assert names_of(f"file://{tree}/a.parquet?region=eu") == ["a.parquet"]
    assert names_of(f"file://{tree}/*.parquet?region=eu") == ["a.parquet"]
    with pytest.raises(SourceError, match=r"s3:// is not a location that can be opened here .*no_such_option"):
        find_source("s3://bucket/*.parquet?no_such_option=1")  # the query reaches the filesystem


def test_brackets_in_the_name_of_an_existing_file_are_no_pattern(tree: Path) -> None:
    (tree / "run[1].parquet").write_bytes(b"")
    assert names_of(tree / "run[1].parquet") == ["run[1].parquet"]


def test_bad_pattern_is_refused(tree: Path) -> None:
    with pytest.raises(SourceError, match="is no valid pattern: bad character range"):
        find_source(f"{tree}/[z-a].parquet")


def test_bracket_pattern_takes_special_characters_as_they_are(tree: Path) -> None:
    (tree / "x[y.parquet").write_bytes(b"")
    assert names_of(f"{tree}/x[[&]y.parquet") == ["x[y.parquet"]


def test_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"The source .*/missing does not exist\. Check the path or URI\.$"):
        find_source(str(tmp_path / "missing"))


def test_folder_without_parquet_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match=r"holds no Parquet files: no name below it ends in \.parquet, \.parq, \.pq"):
        find_source(str(tmp_path))


def test_file_named_outright_is_taken_whatever_it_is_called(tree: Path) -> None:
    (file,) = find_source(str(tree / "d.csv")).files
    assert (file.relative, file.num_bytes) == ("d.csv", len("d.csv"))
    assert names_of(tree / ".hidden.parquet") == [".hidden.parquet"]


def test_hidden_folder_above_the_source_does_not_hide_it(tree: Path) -> None:
    assert names_of(tree / ".cache") == ["x.parquet"]


def test_links_are_followed(tree: Path) -> None:
    os.symlink(tree / "a.parquet", tree / "date=2026-11-01/link.parquet")
    assert "date=2026-11-01/link.parquet" in names_of(tree)


def test_partition_values_are_unescaped_and_the_file_name_is_none() -> None:
    relative = "plain/date=2026-11-01/city=S%C3%A3o%20Paulo%2FSP/empty=/a=b.parquet"
    assert partition_values(relative) == {"date": "2026-11-01", "city": "São Paulo/SP", "empty": ""}
