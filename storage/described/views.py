"""An output as views of DuckDB: `views.sql`, with comments, rows with errors, and tokens with their weights.

Knows nothing of how an output is read elsewhere.
"""

from collections.abc import Iterable

from storage.described.columns import Part
from storage.described.outputs import DescribedOutput, quoted

_HEAD = """-- Views of an output of attnlstm, for DuckDB: duckdb -init views.sql. For an object store, load httpfs and
-- its secret first. Written by `attnlstm contract`; run that again if the output has moved.
"""
_TOKENS = {
    "bytes": "('0x' || substr(hex(found.tokens), 2 * {position} + 1, 2))::INTEGER",
    "text": "('0x' || substr(hex(encode(found.tokens)), 2 * {position} + 1, 2))::INTEGER",
    "ids": "found.tokens[{position} + 1]",
}


def views_sql(output: DescribedOutput) -> str:
    """The statements that make the views. A row is named by its input file and its position there, in every view."""
    file, row = output.free_name("file"), output.free_name("row") if not output.has_rows else "row"
    statements = [_HEAD, *_view_of_files(output, "predictions", file, row)]
    errors = f"SELECT {quoted(file)}, {quoted(row)}, id, error, num_tokens, checkpoint"
    errors += "".join(f", {quoted(column.name)}" for column in output.partitions)
    statements.append(_view("rows_with_errors", f"{errors}\nFROM predictions WHERE error IS NOT NULL"))
    statements.append(_comment("VIEW rows_with_errors", "rows that have no prediction, and why"))
    if "attention" in output.parts:
        statements += _view_of_files(output, "attention", file, row)
        statements += _view_of_tokens(output, file, row)
    return "\n".join(statements)


def _view_of_files(output: DescribedOutput, part: Part, file: str, row: str) -> list[str]:
    """One of all files of a part, and the comments on its columns."""
    place = _text(f"{_escaped(output.address)}/{part}/**/*.parquet")
    types = ", ".join(f"{quoted(column.name)}: {column.sql_type}" for column in output.partitions)
    filename = output.free_name("filename")
    options = f"filename = {_text(filename)}, hive_partitioning = {'true' if types else 'false'}"
    if types:
        options += f", hive_types = {{{types}}}"
    left_out, position = [quoted(filename)], ""
    if not output.has_rows:
        options += ", file_row_number = true"
        left_out.append("file_row_number")
        position = f"made.first_row + found.file_row_number AS {quoted(row)}, "
    body = (
        f"SELECT made.file AS {quoted(file)}, {position}found.* EXCLUDE ({', '.join(left_out)})\n"
        f"FROM read_parquet({place}, {options}) AS found\n"
        "JOIN (\n"
        "    SELECT file_name AS name, decode(value)->>'$.file' AS file,"
        " (decode(value)->>'$.first_row')::BIGINT AS first_row\n"
        f"    FROM parquet_kv_metadata({place}) WHERE decode(key) = 'attnlstm'\n"
        f") AS made ON made.name = found.{quoted(filename)}"
    )
    what = {"predictions": "a row for each row of the input", "attention": "the same rows, with the weights of tokens"}
    comments = [(column.name, column.comment) for column in output.parts[part]]
    comments.append((file, "the input file of the row, below the source"))
    if not output.has_rows:
        comments.append((row, "the row's position in its input file, from 0"))
    return [
        _view(part, body),
        _comment(f"VIEW {part}", f"{what[part]}; classes: {', '.join(map(str, output.classes))}"),
        *(_comment(f"COLUMN {part}.{quoted(name)}", comment) for name, comment in comments),
    ]


def _view_of_tokens(output: DescribedOutput, file: str, row: str) -> list[str]:
    """One row for each weight, beside its token where the source can be read."""
    key = (quoted(file), quoted(row))
    positions = "unnest(positions)" if output.has_positions else "generate_subscripts(weights, 1) - 1"
    names = [*key, "id", "position", "weight"]
    inner = f"SELECT {', '.join(key)}, id, {positions} AS position, unnest(weights) AS weight"
    inner += "\n    FROM attention WHERE weights IS NOT NULL"
    body = f"SELECT {', '.join(names)}\nFROM (\n    {inner}\n)"
    comments = [("position", "where the token stands in its row, from 0"), ("weight", "its attention weight")]
    if output.tokens:
        name, holds = output.tokens
        path = ".".join(quoted(piece) for piece in name.split("."))
        source = _text(f"{_escaped(output.source)}/**/*.parquet")
        token = _TOKENS[holds].format(position="position")
        body = (
            f"SELECT weighed.{', weighed.'.join(names)},\n    {token} AS token\nFROM (\n    {inner}\n) AS weighed\n"
            f"LEFT JOIN (\n    SELECT substr(filename, {len(output.source.rstrip('/')) + 2}) AS input,"
            f" file_row_number AS place, {path} AS tokens\n"
            f"    FROM read_parquet({source}, filename = true, file_row_number = true, hive_partitioning = false)\n"
            f") AS found ON input = weighed.{key[0]} AND place = weighed.{key[1]}"
        )
        comments.append(("token", "the token, as an integer, from the source; null if the file is not there any more"))
    return [
        _view("token_weights", body),
        _comment("VIEW token_weights", "a row for each token that has a weight"),
        *(_comment(f"COLUMN token_weights.{name}", comment) for name, comment in comments),
    ]


def _view(name: str, body: str) -> str:
    return f"\nCREATE OR REPLACE VIEW {name} AS\n{body};"


def _comment(what: str, comment: str) -> str:
    return f"COMMENT ON {what} IS {_text(comment)};"


def _text(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def _escaped(path: str) -> str:
    """A path in a glob of DuckDB, in which nothing of it is a wildcard."""
    return "".join(_wildcards_as_themselves(path.rstrip("/")))


def _wildcards_as_themselves(path: str) -> Iterable[str]:
    return (f"[{char}]" if char in "*?[" else char for char in path)
