"""Which files a source names, and under which relative names."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from storage.errors import OutputError, SourceError
from storage.input.columns import Columns
from storage.input.hive import partition_values
from storage.input.shards import ShardLimits, UnreadableFile, plan_shards
from storage.input.sources import PassedOver, find_source, refuse_nested
from storage.locations import Location, below


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    names = """
        a.parquet b.parq c.pq d.csv .hidden.parquet _SUCCESS _temporary/x.parquet .cache/x.parquet
        date=2026-11-01/part-0.parquet date=2026-11-01/part-1.parquet date=2026-11-02/part-0.parquet
        date=2026-11-02/hour=7/part-0.parquet date=2026-11-02/_tmp/part-9.parquet
    """
    for name in names.split():
        put(root, name, content=name.encode())
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
    ("below", "names"),
    [
        ("date=latest", ["date=2026-11-01/part-0.parquet", "date=2026-11-01/part-1.parquet"]),
        ("date=latest/*-1.parquet", ["date=2026-11-01/part-1.parquet"]),
        ("date=l*/part-0.parquet", ["date=2026-11-01/part-0.parquet"]),
        ("date=latest/part-0.parquet", ["date=2026-11-01/part-0.parquet"]),
        ("first.parquet", ["date=2026-11-01/part-0.parquet"]),
        ("date=2026-11-03", ["date=2026-11-03/gone.parquet", "date=2026-11-03/kept.parquet"]),
        ("date=2026-11-03/k*.parquet", ["date=2026-11-03/kept.parquet"]),
        ("only.parquet", ["only.parquet"]),
    ],
)
def test_slice_that_links_lead_to_has_the_names_of_the_whole(tree: Path, below: str, names: list[str]) -> None:
    (tree / "date=latest").symlink_to("date=2026-11-01")
    (tree / "first.parquet").symlink_to("date=2026-11-01/part-0.parquet")
    (tree / "only.parquet").symlink_to(".hidden.parquet")
    (tree / "date=2026-11-03").mkdir()
    for name, target in (("again", "date=2026-11-01/part-0.parquet"), ("kept", "_temporary/x.parquet"), ("gone", "g")):
        (tree / f"date=2026-11-03/{name}.parquet").symlink_to(f"../{target}")
    found = find_source(f"{tree}/{below}")
    assert [file.relative for file in found.files] == names
    assert set(names) <= set(names_of(tree))
    if below == "date=2026-11-03":
        reason = "the same file as date=2026-11-01/part-0.parquet, which is not in date=2026-11-03"
        assert PassedOver("date=2026-11-03/again.parquet", reason) in found.passed_over


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


def test_brackets_in_names_are_what_they_are(tree: Path) -> None:
    put(tree, "run[1].parquet", "x[y.parquet")
    assert names_of(tree / "run[1].parquet") == ["run[1].parquet"]  # which exists, and so is no pattern
    assert names_of(f"{tree}/x[[&]y.parquet") == ["x[y.parquet"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing", r"The source .*/missing does not exist\. Check the path or URI\.$"),
        ("_temporary/notes", r"holds no Parquet files: no name below it ends in \.parquet, \.parq, \.pq"),
        ("[z-a].parquet", "is no valid pattern: bad character range"),
    ],
)
def test_source_without_files_is_refused_with_what_was_looked_for(tree: Path, source: str, message: str) -> None:
    put(tree / "_temporary/notes", "a.txt")
    with pytest.raises(SourceError, match=message):
        find_source(f"{tree}/{source}")


def test_file_named_outright_is_taken_whatever_it_is_called(tree: Path) -> None:
    (file,) = find_source(str(tree / "d.csv")).files
    assert (file.relative, file.num_bytes) == ("d.csv", len("d.csv"))
    assert names_of(tree / ".hidden.parquet") == [".hidden.parquet"]


def test_hidden_folder_above_the_source_does_not_hide_it(tree: Path) -> None:
    assert names_of(tree / ".cache") == ["x.parquet"]


def passed_over(source: Path | str) -> dict[str, str]:
    return {each.name: each.reason for each in find_source(str(source)).passed_over}


def put(folder: Path, *names: str, content: bytes = b"PAR1") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_what_is_not_read_is_named_with_why(tree: Path) -> None:
    assert passed_over(tree) == {
        ".hidden.parquet": "its name begins with a dot",
        "_temporary": "its name begins with _",
        "d.csv": "its name does not end in .parquet, .parq, .pq",
        "date=2026-11-02/_tmp": "its name begins with _",
    }
    assert passed_over(tree / "*.parquet") == {}


def test_partitions_may_begin_with_an_underscore(tmp_path: Path) -> None:
    put(tmp_path, "_date=1/a.parquet", "date=2/a.parquet", "_SUCCESS", "_temporary/0/a.parquet", "date=2/_x=1.parquet")
    for source in (str(tmp_path), f"file://{tmp_path}", f"{tmp_path}/**"):
        assert names_of(source) == ["_date=1/a.parquet", "date=2/a.parquet"]
    assert partition_values("_date=1/a.parquet") == {"_date": "1"}


def test_upper_case_and_missing_endings_are_read_where_it_is_parquet(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", "b.PARQUET", "c.Pq", "part-00000", "000000_0", "notes.txt", ".part-00000.crc")
    put(tmp_path, "README", "part-00001", content=b"text")
    assert names_of(tmp_path) == ["000000_0", "a.parquet", "b.PARQUET", "c.Pq", "part-00000"]
    assert passed_over(tmp_path) == {
        "README": "it is no Parquet file and has no ending",
        "notes.txt": "its name does not end in .parquet, .parq, .pq",
        "part-00001": "it is no Parquet file and has no ending",
    }


def test_links_lead_to_files_and_folders_elsewhere(tree: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "x.parquet", "y/z.parquet")
    (tree / "date=2026-11-01/link.parquet").symlink_to(tmp_path / "elsewhere/x.parquet")
    (tree / "date=2026-11-09").symlink_to(tmp_path / "elsewhere/y")
    assert {"date=2026-11-01/link.parquet", "date=2026-11-09/z.parquet"} <= set(names_of(tree))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("[]a].parquet", ["].parquet", "a.parquet"]),
        ("[!]a].parquet", ["[.parquet"]),
        ("**/*.parquet", ["[.parquet", "].parquet", "a.parquet", "new\nline/b.parquet"]),
    ],
)
def test_brackets_and_new_lines_in_globs(pattern: str, names: list[str], tmp_path: Path) -> None:
    data = put(tmp_path / "data", "].parquet", "[.parquet", "a.parquet", "new\nline/b.parquet")
    assert names_of(data / pattern) == names
    with pytest.raises(SourceError, match=r"^No file matches the source .*/\[x\*\. Check the pattern"):
        find_source(str(data / "[x*"))


def test_what_is_neither_a_file_nor_a_folder_is_named(tmp_path: Path) -> None:
    data = put(tmp_path / "data", "a.parquet")
    os.mkfifo(data / "pipe.parquet")
    assert find_source(str(data)).passed_over == (PassedOver("pipe.parquet", "neither a file nor a folder"),)


def test_no_file_is_taken_twice_and_loops_are_cut(tmp_path: Path) -> None:
    data = put(tmp_path / "data", "date=2026-11-07/a.parquet", "plain.parquet")
    put(tmp_path / "elsewhere", "b.parquet")
    (data / "self").symlink_to(".")
    (data / "up").symlink_to("..")
    (data / "date=2026-11-07/above").symlink_to("../..")
    (data / "latest").symlink_to("date=2026-11-07")
    (data / "again.parquet").symlink_to("plain.parquet")
    (data / "one").symlink_to(tmp_path / "elsewhere")
    (data / "two").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(data)
    assert names_of(data) == ["date=2026-11-07/a.parquet", "one/b.parquet", "plain.parquet"]
    assert passed_over(data) == {
        "again.parquet": "the same file as plain.parquet",
        "date=2026-11-07/above": "a link to a folder that it is in",
        "latest": "a link to date=2026-11-07, which is read without it",
        "one/back": "a link to a folder that it is in",
        "self": "a link to a folder that it is in",
        "two": "a link to one, which is read without it",
        "up": "a link to a folder that it is in",
    }
    assert names_of(data / "l*" / "*") == ["date=2026-11-07/a.parquet"], "as without the link"
    assert names_of(data / "latest") == ["a.parquet"]
    assert "date=2026-11-07/a.parquet" in names_of(data / "*" / "*")
    assert "latest/a.parquet" not in names_of(data / "*" / "*")


def test_links_to_nowhere_are_files_that_cannot_be_read(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    for name in ("part-9.parquet", "date=2026-11-07", "notes.txt"):
        (tmp_path / name).symlink_to("/nowhere/x")
    (tmp_path / "loop.parquet").symlink_to("loop.parquet")
    problems = {file.relative: file.problem for file in find_source(str(tmp_path)).files}
    nowhere = "a link to /nowhere/x, which does not exist or can't be reached"
    assert problems == {
        "a.parquet": None,
        "date=2026-11-07": nowhere,
        "loop.parquet": "a link to loop.parquet, which does not exist or can't be reached",
        "part-9.parquet": nowhere,
    }
    assert set(passed_over(tmp_path)) == {"notes.txt"}
    planned = plan_shards(find_source(f"{tmp_path}/part*"), Columns(), ShardLimits())
    assert planned.unreadable == (UnreadableFile("part-9.parquet", nowhere),)


def test_names_that_are_not_utf8_matter_only_of_parquet(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    for name in (b"\xff.txt", b"\xff.parquet", b"d\xe9/b.parquet"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"PAR1")
    found = find_source(str(tmp_path))
    assert {file.relative: file.problem for file in found.files} == {
        "a.parquet": None,
        "\\xff.parquet": "its name, or its folder's, is not UTF-8; rename it",
        "d\\xe9/b.parquet": "its name, or its folder's, is not UTF-8; rename it",
    }
    with pytest.raises(SourceError, match=r"^The path .*/d.xe9 is not UTF-8, so it can't be opened\. Rename it\.$"):
        find_source(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"d\xe9")))


def test_folders_that_cannot_be_listed_are_passed_over() -> None:
    # In another process, since root may look into everything, and one that has become somebody else can't come back.
    with tempfile.TemporaryDirectory() as name:
        folder = put(Path(name), "a.parquet", "lost+found/b.parquet")
        folder.chmod(0o755)
        (folder / "lost+found").chmod(0o700 if os.geteuid() == 0 else 0)
        script = f"""
import os
from storage.input.sources import find_source
if os.geteuid() == 0:
    os.seteuid(65534)
found = find_source({name!r})
print([file.relative for file in found.files], [(each.name, each.reason) for each in found.passed_over])
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        (folder / "lost+found").chmod(0o700)
    assert done.stdout == ("['a.parquet'] [('lost+found', \"a folder that can't be listed: Permission denied\")]\n")


@pytest.mark.parametrize(
    ("marker", "source", "kind"),
    [
        ("_delta_log/00.json", "", "Delta"),
        ("_delta_log/00.json", "date=1", "Delta"),
        (".hoodie/hoodie.properties", "", "Hudi"),
        ("metadata/v1.metadata.json", "", "Iceberg"),
        ("metadata/v1.metadata.json", "data", "Iceberg"),
        ("metadata/v1.metadata.json", "*/*.parquet", "Iceberg"),
    ],
)
def test_tables_with_versions_are_refused_with_what_to_do(tmp_path: Path, marker: str, source: str, kind: str) -> None:
    table = put(tmp_path / "table", marker, "data/a.parquet", "date=1/a.parquet")
    for place in (f"{table}/{source}", f"file://{table}/{source}", str(tmp_path)):
        with pytest.raises(SourceError, match=f"table is a table of {kind}: its folder .* Write its current version"):
            find_source(place)
    assert names_of(table / "date=1/a.parquet") == ["date=1/a.parquet"]


def test_folder_that_is_called_metadata_is_no_iceberg(tmp_path: Path) -> None:
    assert names_of(put(tmp_path, "metadata/a.parquet", "data/b.parquet")) == ["data/b.parquet", "metadata/a.parquet"]


def test_output_of_ours_in_a_source_is_passed_over(tmp_path: Path) -> None:
    data = put(tmp_path / "data", "a.parquet", "out/predictions/a.parquet", "other/b.parquet")
    (data / "out/_dataset.json").write_text('{"format": "attnlstm"}')
    (data / "other/_dataset.json").write_text("[]")
    assert names_of(data) == names_of(f"file://{data}") == ["a.parquet", "other/b.parquet"]
    assert passed_over(data)["out"] == "an output of attnlstm"
    with pytest.raises(SourceError, match=r"is an output of attnlstm\. Name the input that it was made from"):
        find_source(str(data / "out"))
    assert names_of(data / "out/predictions") == ["a.parquet"]


def test_output_in_the_source_or_around_it_is_refused_in_any_spelling(tmp_path: Path) -> None:
    data = put(tmp_path / "data", "date=1/a.parquet")
    (tmp_path / "link").symlink_to(data)
    for output in (f"{data}/out", f"{data}/date=1/../out", f"file://{data}/out", f"{tmp_path}/link/out", str(data)):
        with pytest.raises(OutputError, match=r"lies in the source .*, so that predictions would be read as input"):
            refuse_nested(Location.parse(data), Location.parse(output))
    with pytest.raises(OutputError, match=r"^The source .*/link lies in the output "):
        refuse_nested(Location.parse(f"{tmp_path}/link"), Location.parse(tmp_path))
    refuse_nested(Location.parse(data), Location.parse(f"{data}-out"))
    refuse_nested(Location.parse(data), Location.parse(f"{data}/out"), is_pattern=True)


@pytest.mark.parametrize("name", ["o[1]", "a*b", "q?", "h=Brand#21", "a b", "a%3Ab", "a+b", "é"])
def test_names_that_exist_are_taken_as_they_are(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / name, "x.parquet")
    put(tmp_path, "o1/y.parquet", "aXb/y.parquet", "h=Brand/y.parquet")
    monkeypatch.setenv("HOME", str(tmp_path))
    (place,) = (str(tmp_path / name),)
    for source in (place, f"~/{name}", Path(place).as_uri(), below(f"file://{tmp_path}", name)):
        found = find_source(source)
        assert ([found.location(file).path for file in found.files], found.is_pattern) == (
            [f"{place}/x.parquet"],
            False,
        )


def test_partition_values_are_unescaped_and_the_file_name_is_none() -> None:
    relative = "plain/date=2026-11-01/city=S%C3%A3o%20Paulo%2FSP/empty=/n=__HIVE_DEFAULT_PARTITION__/a=b.parquet"
    assert partition_values(relative) == {"date": "2026-11-01", "city": "São Paulo/SP", "empty": "", "n": None}
