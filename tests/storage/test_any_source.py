"""Whatever lies in a folder: every file of it is scored, fails by name or is passed over by name, and no row is lost.

Sources are drawn: names, endings, partitions, null markers, types of tokens and ids, damaged files, links. What becomes
of them is counted by walking the folder and with DuckDB, which share no code with what reads them here.
"""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import SourceError
from storage.input.columns import Columns
from storage.locations import Location
from storage.output.frames import open_attention, open_predictions
from storage.output.layout import Output, OutputSettings
from storage.output.plan import plan_output
from storage.output.verification import verify_output

EXAMPLES = int(os.environ.get("ATTNLSTM_SOURCES", "40"))
TOKENS = (b"ab", b"", None, b"cde")
ROWS = len(TOKENS)

FOLDERS = ("", "a b", "h=Brand%2321", "h=Brand", "h=__HIVE_DEFAULT_PARTITION__", "_h=1", "_temporary", ".cache", "q#?")
STEMS = ("part-0", "a b", "ü", "x#1", "p%20q", "100%", "r?", "s[1]", "_part", "t'u", "k=v")
PARQUET = (".parquet", ".parq", ".pq")
ENDINGS = (".parquet", ".PARQUET", ".parq", ".pq", "", ".snappy.parquet", ".txt", ".parquet.crc")
KINDS = ("binary", "string", "view", "list", "large list", "dictionary", "nulls", "empty lists", "json")
DAMAGE = ("cut short", "text", "no bytes", "no tokens")


def tokens_of(kind: str) -> pa.Array:
    """TOKENS as a column of a type; those that cannot hold them have four rows all the same."""
    lists = [None if each is None else list(each) for each in TOKENS]
    texts = [None if each is None else each.decode() for each in TOKENS]
    match kind:
        case "string":
            return pa.array(texts, pa.string())
        case "view":
            return pa.array(TOKENS, pa.binary_view())
        case "list":
            return pa.array(lists, pa.list_(pa.int32()))
        case "large list":
            return pa.array(lists, pa.large_list(pa.uint8()))
        case "dictionary":
            return pa.array(texts, pa.string()).dictionary_encode()
        case "nulls":
            return pa.nulls(4)
        case "empty lists":
            return pa.array([[], [], None, []], pa.list_(pa.null()))
        case "json":
            return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))
    return pa.array(TOKENS, pa.binary())


def write(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens = tokens_of(kind if kind in KINDS else "binary")
    name = "other" if kind == "no tokens" else "tokens"
    pq.write_table(pa.table({"id": [f"{path.name}-{row}" for row in range(4)], name: tokens}), path)
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:-5])
    elif kind == "text":
        path.write_text("id,tokens\n1,ab\n")
    elif kind == "no bytes":
        path.write_bytes(b"")


files = st.tuples(
    st.lists(st.sampled_from(FOLDERS), max_size=2).map(lambda parts: "/".join(filter(None, parts))),
    st.sampled_from(STEMS),
    st.sampled_from(ENDINGS),
    st.sampled_from(KINDS + DAMAGE),
)
# A link's place, and what it leads to: a file or folder by its number among all, the folder that it is in, or nowhere.
links = st.tuples(st.sampled_from(("l.parquet", "a b/m.parquet", "h=Brand/n", "latest")), st.integers(-2, 5))


def make_source(folder: Path, drawn: list[tuple[str, str, str, str]], linked: list[tuple[str, int]]) -> None:
    for parent, stem, ending, kind in drawn:
        write(folder / parent / f"{stem}{ending}", kind)
    targets = sorted(folder.rglob("*"))
    for name, number in linked:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() and not path.is_symlink():
            target = {-1: path.parent, -2: folder / "gone"}.get(number, targets[number % len(targets)])
            path.symlink_to(target)


def as_path(folder: Path, s3: Callable[[str], str]) -> tuple[str, str]:
    return str(folder / "data"), str(folder / "out")


def as_file_uri(folder: Path, s3: Callable[[str], str]) -> tuple[str, str]:
    return f"file://{quote(str(folder / 'data'))}", f"file://{quote(str(folder / 'out'))}"


def as_s3_uri(folder: Path, s3: Callable[[str], str]) -> tuple[str, str]:
    """The same files as objects. A store has no links, so they are taken away."""
    bucket = quote(folder.name)
    root = Location.parse(s3(f"{bucket}/data"))
    for path in sorted((folder / "data").rglob("*")):
        if path.is_symlink():
            path.unlink()
        elif path.is_file():
            (root / str(path.relative_to(folder / "data"))).write_bytes(path.read_bytes())
    return s3(f"{bucket}/data"), s3(f"{bucket}/out")


def ids_by_duckdb(content: bytes, folder: Path) -> list[str]:
    path = folder.parent / "read by DuckDB"
    path.write_bytes(content)
    return [row[0] for row in duckdb.execute("SELECT id FROM read_parquet(?)", [str(path)]).fetchall()]


def check(source: str, output_place: str, folder: Path, score: Callable[..., Any], *, has_links: bool) -> None:
    output = Output(Location.parse(output_place), OutputSettings(columns=Columns()))
    try:
        plan = plan_output(source, output)
    except SourceError as error:
        if not re.search("holds no Parquet files|would both be written to", str(error)):
            raise
        return
    score(source, output, damaged=True)

    # Every file is one of three, by its own name or by that of a folder above it.
    scored = {shard.file for shard in plan.shards}
    failed = {each.file for each in plan.unreadable}
    passed_over = {each.name for each in plan.source.passed_over}
    assert not scored & failed
    taken = {os.path.realpath(folder / name) for name in scored | failed}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        is_marker = path.name.startswith("_") and path.suffix.lower() not in PARQUET
        if path.is_dir() or is_marker or any(part.startswith(".") for part in name.split("/")):
            continue  # such as _SUCCESS or .DS_Store, which are not worth a word
        above = {"/".join(name.split("/")[:depth]) for depth in range(1, name.count("/") + 2)}
        ways = [name in scored, name in failed, bool(above & passed_over)]
        read_by_another_name = has_links and ways == [False] * 3 and os.path.realpath(path) in taken
        assert sum(ways) == 1 or read_by_another_name, (name, ways, sorted(passed_over))

    # No file is read twice, and DuckDB finds the rows of each in its predictions and its attention.
    assert not has_links or len({os.path.realpath(folder / name) for name in scored}) == len(scored)
    for shard in plan.shards:
        ids = ids_by_duckdb((folder / shard.file).read_bytes(), folder)
        assert len(ids) == ROWS
        for place in (output.predictions(shard.name), output.attention(shard.name)):
            assert ids_by_duckdb(place.read_bytes(), folder) == ids

    report = verify_output(plan)
    assert {problem.path for problem in report.problems} == failed
    assert report.num_rows == ROWS * len(scored)
    if scored:
        predictions, attention = open_predictions(output_place).collect(), open_attention(output_place).collect()
        assert predictions["id"].to_list() == attention["id"].to_list()
        names = [os.path.basename(os.path.realpath(folder / name)) for name in scored]
        ids = [f"{name}-{row}" for name in names for row in range(ROWS)]
        assert sorted(predictions["id"].to_list()) == sorted(ids)
        usable = attention.filter(pl.col("error").is_null())
        assert usable["weights"].list.len().to_list() == usable["num_tokens"].to_list()


@pytest.mark.parametrize("place", [as_path, as_file_uri, as_s3_uri])
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(drawn=st.lists(files, min_size=1, max_size=6), linked=st.lists(links, max_size=3))
def test_every_file_is_scored_or_fails_or_is_passed_over(
    place: Callable[..., tuple[str, str]],
    drawn: list[tuple[str, str, str, str]],
    linked: list[tuple[str, int]],
    s3: Callable[[str], str],
    score: Callable[..., Any],
) -> None:
    with tempfile.TemporaryDirectory(prefix="any ") as name:
        folder = Path(name) / "data"
        make_source(folder, drawn, linked)
        source, output = place(Path(name), s3)
        check(source, output, folder, score, has_links=place is not as_s3_uri)
