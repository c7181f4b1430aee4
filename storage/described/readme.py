"""The page that lies in an output, README.md: what it is, its columns, and three queries that fit it.

For whoever finds the folder and nothing else. Knows nothing about files: the same settings and types give the same
text, which names no place on a machine.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from storage.described.columns import Part, columns_of, free_name

if TYPE_CHECKING:
    from storage.output.layout import OutputSettings

_LONGEST_NAME = 120

_HEAD = """# Scores of token sequences

One row for each row of the input, file by file and in its order: the class that a network took it for, with the
probability of each class, and how much attention it paid to each token. Written by attnlstm, format version {version}.

| place | what |
|---|---|
| `predictions/` | Parquet, a file for each input file, under its name; large ones in parts, `-00000-of-00004` |
{attention}| `runs/` | a record of each run, and a report about it to open in a browser |
| `_dataset.json` | the settings that all files share |

The name of a file and `row` identify a row. One that can't be scored has no prediction, and `error` says why. Folders
such as `date=2026-11-01/` are columns of the rows in them. A file that has appeared is whole; the same run again does
what is missing.
"""
_ATTENTION = "| `attention/` | the same rows under the same names, with the weight of each token |\n"

_QUERIES = """
## Three questions

For DuckDB and for Polars, in this folder. In an object store its URI goes before the paths.

How many rows are of each class, and how sure is that?

```sql
SELECT prediction, count(*) AS num_rows, round(avg(score), 3) AS mean_score
FROM 'predictions/**/*.parquet' GROUP BY prediction ORDER BY num_rows DESC, prediction
```

```python
import polars as pl

predictions = pl.scan_parquet("predictions/**/*.parquet", include_file_paths="{file}")
of_class = predictions.group_by("prediction").agg(pl.len().alias("num_rows"), pl.col("score").mean())
print(of_class.sort("num_rows", descending=True).collect())
```

Which rows have no prediction, and why?

```sql
SELECT {filename}, row, id, error FROM {predictions}
WHERE error IS NOT NULL ORDER BY {filename}, row
```

```python
print(predictions.filter(pl.col("error").is_not_null()).select("{file}", "row", "id", "error").collect())
```
"""
_LEAST_SURE = """
Which rows are the least sure?

```sql
SELECT {filename}, row, id, prediction, score FROM {predictions}
WHERE error IS NULL ORDER BY score, {filename}, row LIMIT 10
```

```python
sure = predictions.select("{file}", "row", "id", "prediction", "score").drop_nulls("score")
print(sure.bottom_k(10, by="score").collect())
```
"""
_MOST_ATTENDED = """
Which token of each row is attended to most?

```sql
SELECT file, row, prediction, {sql} AS position, list_max(weights) AS weight
FROM (SELECT regexp_replace({filename}, 'predictions/', '') AS file, row, prediction, error FROM {predictions})
JOIN (SELECT regexp_replace(filename, 'attention/', '') AS file, row, {weights} FROM 'attention/**/*.parquet')
USING (file, row)
WHERE error IS NULL ORDER BY file, row
```

```python
attention = pl.scan_parquet("attention/**/*.parquet", include_file_paths="{file}")
beside = attention.with_columns(pl.col("{file}").str.replace("attention/", "predictions/", literal=True)).drop("id")
attended = predictions.join(beside, on=["{file}", "row"], how="inner").filter(pl.col("error").is_null())
position, weight = {polars}.alias("position"), pl.col("weights").list.max().alias("weight")
print(attended.select("{file}", "row", "prediction", position, weight).collect())
```
"""


def output_readme(settings: "OutputSettings", types: Mapping[str, pa.DataType]) -> str:
    """The page of an output with these settings. types: of its id, kept columns and predictions, as far as known."""
    kind = settings.attention.kind
    text = _HEAD.format(version=settings.format_version, attention="" if kind == "none" else _ATTENTION)
    text += _table("predictions", settings, types)
    names = {wanted: free_name(wanted, settings.columns.keep) for wanted in ("file", "filename")}
    found = "'predictions/**/*.parquet'"
    if names["filename"] != "filename":
        found = f"read_parquet({found}, filename = '{names['filename']}')"
    if kind == "none":
        return text + (_QUERIES + _LEAST_SURE).format(**names, predictions=found)
    weights, sql, polars = (
        "weights",
        "list_position(weights, list_max(weights)) - 1",
        'pl.col("weights").list.arg_max()',
    )
    if kind == "top":
        weights, sql, polars = "positions, weights", "positions[1]", 'pl.col("positions").list.first()'
    queries = _QUERIES + _MOST_ATTENDED
    text += _table("attention", settings, types)
    return text + queries.format(**names, predictions=found, weights=weights, sql=sql, polars=polars)


def _table(part: Part, settings: "OutputSettings", types: Mapping[str, pa.DataType]) -> str:
    lines = [f"\n## Columns of {part}\n", "| column | type | null | meaning |", "|---|---|---|---|"]
    for name, column in columns_of(part, settings.columns.keep, has_positions=settings.attention.kind == "top"):
        kind = code(str(types[name])) if name in types else column.type
        lines.append(f"| {code(name)} | {kind} | {column.null} | {column.meaning} |")
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    """Text of unknown origin as a code span in a table of Markdown, where it is shown and does nothing.

    What can't be seen or moves others, such as line breaks and marks of direction, is named by its escape.
    """
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    if len(shown) > _LONGEST_NAME:
        shown = f"{shown[:_LONGEST_NAME]}..."
    fence = "`"
    while fence in shown:
        fence += "`"
    space = " " if "`" in shown else ""
    return f"{fence}{space}{shown}{space}{fence}".replace("|", "\\|")
