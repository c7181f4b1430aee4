"""Finding input files: a file, a folder, a glob or a URI becomes a sorted list of Parquet files.

Owns which files count as input, what is passed over and why, and the relative name under which each file is known from
then on. Opens a file only to tell whether one without an ending is Parquet.
"""

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow.fs as pafs

from storage.errors import OutputError, SourceError, did_you_mean
from storage.footers import FOOTER_READERS, MAGIC
from storage.input.hive import hidden_part, split_partitions
from storage.input.listing import Entry, PassedOver, list_folder
from storage.locations import Location, query_of

__all__ = ["PassedOver", "Source", "SourceFile", "find_source", "refuse_nested"]

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
# The file by which an output of ours is known; `storage.output.layout` writes it.
OUTPUT_RECORD = "_dataset.json"
_GLOB = re.compile(r"[*?\[]")
# Folders that a table format keeps beside its Parquet files, of which only some belong to the current version.
_TABLES = {
    "_delta_log": ("Delta", "deltalake's DeltaTable(...).to_pyarrow_dataset(), or its file_uris() as links"),
    ".hoodie": ("Hudi", "a snapshot query of Spark or hudi-rs"),
    "metadata": ("Iceberg", "pyiceberg's table.scan().to_arrow(), or the catalog's list of live files as links"),
}


@dataclass(frozen=True)
class SourceFile:
    """`relative` is the path below the source's root, Hive partitions included; `num_bytes` its size.

    problem: why it can't be read although it should be, such as a link to nowhere; None if nothing is known against it.
    """

    relative: str
    num_bytes: int
    problem: str | None = None


@dataclass(frozen=True)
class Source:
    """The input of a run: files below `root`. `scope` is the part of the root that was asked for.

    passed_over: what lies in the source and is not read, with why. is_pattern: it was named by a glob.
    """

    root: Location
    scope: str
    files: tuple[SourceFile, ...]
    passed_over: tuple[PassedOver, ...] = ()
    is_pattern: bool = False

    def location(self, file: SourceFile) -> Location:
        return self.root / file.relative


def find_source(source: str) -> Source:
    """List the Parquet files of `source`, in order of their relative names.

    In a folder, files count whose name ends in .parquet, .parq or .pq, in upper or lower case, and those without an
    ending that begin as Parquet does. Names that begin with `.`, or with `_` and are no partition, are passed over at
    every level, as Hive and Spark do. A file that is named outright is taken as it is; what a glob matches may have any
    suffix. What exists under its literal name is no glob. In globs `*`, `?` and `[...]` stay within a folder, `**`
    spans folders. Links are followed, and a file that several names lead to is taken once.
    Trailing `key=value` folders belong to the relative name: `data/date=2026-11-01` has the root `data`, so
    that a slice of a dataset keeps the names it has in the whole. So does one that is named by a link within it.

    Raises SourceError if there is nothing to read, or if it is a table of Delta, Iceberg or Hudi.
    """
    # In a URI, `?` begins the query (`s3://bucket/data?region=...`) and is no wildcard.
    address, query = query_of(source)
    place = Location.parse(source)
    info = place.info()
    if info.type == pafs.FileType.NotFound:
        if wildcard := _GLOB.search(address):
            return _find_glob(address, wildcard.start(), query)
        raise SourceError(f"The source {place} does not exist. Check the path or URI.{_near(place)}")
    base, scope = _slice(place, is_folder=info.type != pafs.FileType.File)
    if info.type == pafs.FileType.File:
        return Source(base, scope, (SourceFile(scope, info.size),))
    found = _read_folder(base, scope, None)
    if not found.files:
        others = f" ({_counted(found.passed_over)})" if found.passed_over else ""
        raise SourceError(
            f"The source {place} holds no Parquet files: no name below it ends in "
            f"{', '.join(PARQUET_SUFFIXES)}{others}. Check the path, or name the files with a glob."
        )
    return found


def _near(place: Location) -> str:
    """The name beside a place that is like it, where there is one."""
    folder = Location(place.filesystem, place.path.rpartition("/")[0])
    selector = pafs.FileSelector(folder.path, allow_not_found=True)
    try:
        return did_you_mean(place.name, (info.base_name for info in place.filesystem.get_file_info(selector)))
    except OSError:  # what may not be listed is not guessed from
        return ""


def refuse_nested(place: Location, output: Location, *, is_pattern: bool = False) -> None:
    """Raises OutputError if what is written to `output` would lie in a source, or the source lies in the output.

    place: the source. is_pattern: it is the folder above a glob, which may leave the output out.
    """
    if place.filesystem.type_name != output.filesystem.type_name:
        return
    inner, outer = (_real(each) for each in (output, place))
    if (inner == outer or inner.startswith(f"{outer}/")) and not is_pattern:
        raise OutputError(
            f"The output {output} lies in the source {place}, so that predictions would be read as input. "
            "Write to a folder beside it."
        )
    if outer == inner or outer.startswith(f"{inner}/"):
        raise OutputError(f"The source {place} lies in the output {output}. Write to a folder beside it.")


def _is_output(place: Location) -> bool:
    """Whether a folder is an output of ours."""
    try:
        record = json.loads((place / OUTPUT_RECORD).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("format") == "attnlstm"


def _find_glob(pattern: str, wildcard: int, query: str) -> Source:
    fixed = pattern[:wildcard].rpartition("/")[0]
    place = Location.parse((fixed or ("/" if pattern.startswith("/") else ".")) + query)
    base, scope = _slice(place, is_folder=True)
    below = f"{scope}/" if scope else ""
    try:
        wanted = pattern[len(fixed) :].lstrip("/")
        if "://" in pattern:
            wanted = unquote(wanted)  # as `Location.parse` does with the part before it
        expression = re.compile(re.escape(below) + _glob_expression(wanted), re.DOTALL)
    except re.error as error:
        raise SourceError(f"The source {pattern} is no valid pattern: {error}.") from None
    others = ""
    if place.is_folder():
        found = _read_folder(base, scope, expression)
        if found.files:
            return found
        others = f" ({_counted(found.passed_over)})" if found.passed_over else ""
    raise SourceError(f"No file matches the source {pattern}{others}. Check the pattern; ** spans folders.")


def _slice(place: Location, *, is_folder: bool) -> tuple[Location, str]:
    """The dataset that a place lies in, and the name that it has there, without the links by which it was named."""
    root, scope = split_partitions(place.path, is_folder=is_folder)
    base = Location(place.filesystem, root)
    name = _name_without_links(base, place.path) if place.is_local else None
    if name is not None and hidden_part(f"{name}/" if is_folder else name) is None:
        scope = name if is_folder or _is_parquet(name) else scope
    return base, scope


def _name_without_links(base: Location, path: str) -> str | None:
    """The name below `base` of what a path on a disk leads to; None if that lies elsewhere."""
    real, root = os.path.realpath(path), _real(base)
    return real[len(root) + 1 :] if real.startswith(f"{root}/") else None


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(PARQUET_SUFFIXES)


def _read_folder(base: Location, scope: str, pattern: re.Pattern[str] | None) -> Source:
    """The input below a folder. pattern: of relative names; None for all that is Parquet by name or first bytes."""
    place = base / scope
    if pattern is None and _is_output(place):
        raise SourceError(f"The source {place} is an output of attnlstm. Name the input that it was made from.")
    listing = list_folder(place, follow_again=pattern is not None)
    below = f"{scope}/" if scope else ""
    _refuse_tables(base, place, listing.entries)
    outputs = _outputs(place, listing.entries)
    passed_over = {below + each.name: each.reason for each in listing.passed_over}
    files: list[SourceFile] = []
    unsure: list[SourceFile] = []
    taken: dict[str, str] = {}

    def pass_over(name: str, reason: str) -> None:
        passed_over.setdefault(below + name, reason)

    for entry in listing.entries:
        relative = below + entry.name
        hidden = hidden_part(entry.name)
        ours = next((folder for folder in outputs if entry.name.startswith(f"{folder}/")), None)
        is_parquet = _is_parquet(entry.name)
        if pattern is not None and (hidden or not pattern.fullmatch(relative)):
            continue
        other = _name_without_links(base, entry.real) if entry.by_link and entry.real and not entry.problem else None
        if other is not None and (hidden_part(other) is not None or not _is_parquet(other)):
            other = None  # the dataset as a whole has no such file, only the link
        if ours is not None:
            pass_over(ours, "an output of attnlstm")
        elif hidden and (is_parquet or hidden != entry.name) and not hidden.rpartition("/")[2].startswith("."):
            pass_over(hidden, "its name begins with _")
        elif hidden:
            if is_parquet and hidden == entry.name:
                pass_over(hidden, "its name begins with a dot")
        elif pattern is None and not is_parquet and "." in entry.name.rpartition("/")[2]:
            pass_over(entry.name, f"its name does not end in {', '.join(PARQUET_SUFFIXES)}")
        elif entry.real is not None and entry.real in taken:
            pass_over(entry.name, f"the same file as {taken[entry.real]}")
        elif other is not None and not other.startswith(below):
            pass_over(entry.name, f"the same file as {other}, which is not in {scope}")
        else:
            if pattern is not None and other is not None:
                relative = other
            if entry.real is not None and entry.problem is None:
                taken[entry.real] = relative
            file = SourceFile(relative, entry.num_bytes, entry.problem)
            (files if pattern or is_parquet or entry.problem else unsure).append(file)
    for file, problem in zip(unsure, _looks(base, unsure), strict=True):
        if problem:
            passed_over[file.relative] = problem
        else:
            files.append(file)
    return Source(
        base,
        scope,
        tuple(sorted(files, key=lambda file: file.relative)),
        tuple(PassedOver(name, passed_over[name]) for name in sorted(passed_over)),
        is_pattern=pattern is not None,
    )


def _looks(base: Location, files: list[SourceFile]) -> Iterator[str]:
    """Of files without an ending: "" for each that begins as Parquet does, else why it is no input."""

    def look(file: SourceFile) -> str:
        place = base / file.relative
        try:
            with place.filesystem.open_input_stream(place.path) as stream:
                return "" if bytes(stream.read(len(MAGIC))) == MAGIC else "it is no Parquet file and has no ending"
        except OSError:
            return ""  # why it can't be opened is told where it is planned

    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        yield from pool.map(look, files)


def _outputs(place: Location, entries: list[Entry]) -> list[str]:
    """The folders below `place` that are outputs of ours."""
    records = (entry.name for entry in entries if entry.name.endswith(f"/{OUTPUT_RECORD}"))
    return [name.rpartition("/")[0] for name in records if _is_output(place / name.rpartition("/")[0])]


def _refuse_tables(base: Location, place: Location, entries: list[Entry]) -> None:
    """Raises SourceError if Parquet files of several versions of a table lie here, as Delta, Iceberg and Hudi do it."""
    found = None
    for entry in entries:
        parts = entry.name.split("/")
        for marker in _TABLES:
            if marker in parts and (marker != "metadata" or entry.name.endswith(".metadata.json")):
                found = (place / "/".join(parts[: parts.index(marker)]), marker)
    folder = base.path.rpartition("/")
    above = [(base, "_delta_log"), (base, ".hoodie")]
    if folder[2] == "data":  # Iceberg's files are in `data`, beside `metadata`
        above.append((Location(base.filesystem, folder[0] or "/"), "metadata"))
    for table, marker in above:
        if found is None and (table / marker).is_folder():
            names = [info.base_name for info in (table / marker).walk()] if marker == "metadata" else []
            if marker != "metadata" or any(name.endswith(".metadata.json") for name in names):
                found = (table, marker)
    if found is not None:
        kind, way = _TABLES[found[1]]
        raise SourceError(
            f"{found[0]} is a table of {kind}: its folder has the files of earlier versions and of deleted rows too. "
            f"Write its current version to a folder of Parquet files and classify that; {way} have it."
        )


def _counted(passed_over: tuple[PassedOver, ...]) -> str:
    first = passed_over[0]
    more = f" and {len(passed_over) - 1} more" if len(passed_over) > 1 else ""
    return f"passed over: {first.name}, {first.reason}{more}"


def _real(place: Location) -> str:
    return os.path.realpath(place.path).rstrip("/") if place.is_local else place.path


def _glob_expression(pattern: str) -> str:
    """A regular expression for a glob: `*` and `?` stay within a folder, `**/` spans any number of them."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translate(token: re.Match[str]) -> str:
        text = token.group()
        if text.startswith("[") and len(text) > 1:
            negated = text[1] in "!^"
            characters = re.escape(text[1 + negated : -1]).replace(r"\-", "-")
            return f"[^/{characters}]" if negated else f"[{characters}]"
        return tokens.get(text) or re.escape(text)

    return re.sub(r"\*\*/|\*\*|\*|\?|\[[!^]?\]?[^\]]*\]|.", translate, pattern)
