"""The page in an output: its queries run, its tables are those of the files, and nothing in a name gets out of them."""

import re
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.described.readme import code, output_readme
from storage.input.columns import Columns
from storage.input.sources import find_source
from storage.locations import Location
from storage.output.layout import Output, OutputSettings
from storage.output.orphans import find_leftovers, find_orphans
from storage.output.plan import existing_output, plan_output

TOKENS = [b"ab", b"", None, b"cde"]


@pytest.mark.parametrize(
    ("saving", "kept"), [("full", "x"), ("top:1", "x"), ("none", "x"), ("full", "File"), ("top:1", "filename")]
)
@pytest.mark.parametrize("folders", [("d=1", "d=2"), ("predictions/b", "attention"), (".", "d=2")], ids=str)
def test_the_page_of_a_new_output_says_its_columns_and_has_three_queries_that_run(
    saving: str,
    kept: str,
    folders: tuple[str, str],
    tmp_path: Path,
    put: Callable[..., Path],
    made: Callable[..., Output],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in folders:
        put(f"{folder}/a.parquet", TOKENS, **{kept: [1, 2, 3, 4]})
    made(saving, columns=Columns(keep=(kept,)))
    text = (tmp_path / "out/README.md").read_text()
    assert str(tmp_path) not in text
    for part in ("predictions", "attention"):
        section = text.partition(f"## Columns of {part}\n")[2].partition("\n## ")[0]
        place = tmp_path / f"out/{part}/{folders[0]}/a.parquet"
        assert re.findall(r"^\| `(\w+)` ", section, re.MULTILINE) == (pq.read_schema(place).names if section else [])
    monkeypatch.chdir(tmp_path / "out")
    queries, pieces = (
        re.findall(r"```sql\n(.*?)```", text, re.DOTALL),
        re.findall(r"```python\n(.*?)```", text, re.DOTALL),
    )
    assert len(queries) == len(pieces) == 3
    names: dict[str, object] = {}
    for query, piece in zip(queries, pieces, strict=True):
        with duckdb.connect() as connection:
            rows = connection.sql(query).fetchall()
        assert rows
        if query == queries[1]:
            assert [(Path(file).parts[0], row) for file, row, *_ in rows] == [
                ("predictions", 1),
                ("predictions", 2),
            ] * 2
        exec(piece, names)
        assert "shape: (0," not in capsys.readouterr().out
    if saving != "none":
        with duckdb.connect() as connection:
            found = connection.sql(queries[2]).fetchall()
        place_of = {(file, row): position for file, row, _, position, _ in found}
        files = [(Path(folder) / "a.parquet").as_posix() for folder in folders]
        expected = {(file, row): position for file in files for row, position in ((0, 1), (3, 2))}
        assert place_of == expected
        attended = names["attended"].select("row", names["position"]).collect()  # type: ignore[attr-defined]
        assert sorted(attended.rows()) == [(0, 1), (0, 1), (3, 2), (3, 2)]


def test_the_page_is_written_once_and_is_nobodys_input(
    tmp_path: Path, data: Path, put: Callable[..., Path], made: Callable[..., Output]
) -> None:
    put("a.parquet", TOKENS)
    output = made()
    page = tmp_path / "out/README.md"
    before = page.read_bytes()
    page.unlink()
    made()
    assert page.read_bytes() == before
    page.write_text("Our own words.")
    made()
    assert page.read_text() == "Our own words."
    planned = plan_output(str(data), existing_output(str(output.root)))
    assert (find_orphans(planned), find_leftovers(planned.output)) == ((), ())
    found = find_source(str(tmp_path / "out/predictions"))
    assert [file.relative for file in found.files] == ["a.parquet"]


def test_an_output_of_version_1_gets_no_page(tmp_path: Path) -> None:
    Output(Location.parse(tmp_path / "out"), OutputSettings(format_version=1)).prepare("/data")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_dataset.json"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("site", "`site`"),
        ("a|b", "`a\\|b`"),
        ("`", "`` ` ``"),
        ("a``b|", "``` a``b\\| ```"),
        ("<script>alert(1)</script>", "`<script>alert(1)</script>`"),
        ("x\n# y\u202e\x1b[31m", "`x\\n# y\\u202e\\x1b[31m`"),
        ("n" * 500, f"`{'n' * 120}...`"),
    ],
)
def test_names_are_shown_and_do_nothing(text: str, shown: str) -> None:
    assert code(text) == shown
    page = output_readme(OutputSettings(columns=Columns(keep=(text,))), {text: pa.struct({text: pa.int8()})})
    rows = [line for line in page.splitlines() if line.startswith(f"| {shown} |")]
    assert len(rows) == 1
    assert rows[0].endswith(" | as the input's | carried through from the input, under its own name |")
