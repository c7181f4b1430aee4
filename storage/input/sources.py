"""Finding input files: a file, a folder, a glob or a URI becomes a sorted list of Parquet files.

Owns which files count as input and the relative name under which each is known from then on. Opens none of
them.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow.fs as pafs

from storage.errors import SourceError
from storage.locations import Location

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
_GLOB = re.compile(r"[*?\[]")
_HIVE = re.compile(r"[^/=]+=[^/]*")


@dataclass(frozen=True, order=True)
class SourceFile:
    """`relative` is the path below the source's root, Hive partitions included; `num_bytes` its size."""

    relative: str
    num_bytes: int


@dataclass(frozen=True)
class Source:
    """The input of a run: files below `root`. `scope` is the part of the root that was asked for."""

    root: Location
    scope: str
    files: tuple[SourceFile, ...]

    def location(self, file: SourceFile) -> Location:
        return self.root / file.relative


def find_source(source: str) -> Source:
    """List the Parquet files of `source`, in order of their relative names.

    In a folder, files count whose name ends in .parquet, .parq or .pq; names that begin with `_` or `.` are
    passed over at every level, as Hive and Spark do. A file that is named outright is taken as it is; what a
    glob matches may have any suffix. In globs `*`, `?` and `[...]` stay within a folder, `**` spans folders.
    Trailing `key=value` folders belong to the relative name: `data/date=2026-11-01` has the root `data`, so
    that a slice of a dataset keeps the names it has in the whole.

    Raises SourceError if there is nothing to read.
    """
    # In a URI, `?` begins the query (`s3://bucket/data?region=...`) and is no wildcard.
    address, mark, query = source.partition("?") if "://" in source else (source, "", "")
    if (wildcard := _GLOB.search(address)) and not os.path.exists(source):
        return _find_glob(address, wildcard.start(), mark + query)
    place = Location.parse(source)
    info = place.info()
    if info.type == pafs.FileType.NotFound:
        raise SourceError(f"The source {place} does not exist. Check the path or URI.")
    if info.type == pafs.FileType.File:
        root, relative = _split_hive(place.path, is_folder=False)
        return Source(Location(place.filesystem, root), relative, (SourceFile(relative, info.size),))
    root, scope = _split_hive(place.path, is_folder=True)
    base = Location(place.filesystem, root)
    files = _files_below(base, place, lambda relative: relative.endswith(PARQUET_SUFFIXES))
    if not files:
        raise SourceError(
            f"The source {place} holds no Parquet files: no name below it ends in "
            f"{', '.join(PARQUET_SUFFIXES)}. Check the path, or name the files with a glob."
        )
    return Source(base, scope, files)


def partition_values(relative: str) -> dict[str, str]:
    """The Hive partition columns in a relative name: `date=2026-11-01/part-0.parquet` gives `{date: ...}`."""
    parts = (part.partition("=") for part in relative.split("/")[:-1] if _HIVE.fullmatch(part))
    return {key: unquote(value) for key, _, value in parts}


def _find_glob(pattern: str, wildcard: int, query: str) -> Source:
    fixed = pattern[:wildcard].rpartition("/")[0]
    place = Location.parse((fixed or ("/" if pattern.startswith("/") else ".")) + query)
    root, scope = _split_hive(place.path, is_folder=True)
    base = Location(place.filesystem, root)
    below = f"{scope}/" if scope else ""
    try:
        wanted = pattern[len(fixed) :].lstrip("/")
        if "://" in pattern:
            wanted = unquote(wanted)  # as `Location.parse` does with the part before it
        expression = re.compile(re.escape(below) + _glob_expression(wanted))
    except re.error as error:
        raise SourceError(f"The source {pattern} is no valid pattern: {error}.") from None
    files = _files_below(base, place, lambda relative: bool(expression.fullmatch(relative)))
    if not files:
        raise SourceError(f"No file matches the source {pattern}. Check the pattern; ** spans folders.")
    return Source(base, scope, files)


def _files_below(base: Location, place: Location, wanted: Callable[[str], bool]) -> tuple[SourceFile, ...]:
    files = []
    for info in place.walk():
        visible = not any(part.startswith(("_", ".")) for part in place.relative(info.path).split("/"))
        relative = base.relative(info.path)
        if info.type == pafs.FileType.File and visible and wanted(relative):
            files.append(SourceFile(relative, info.size))
    return tuple(sorted(files))


def _split_hive(path: str, *, is_folder: bool) -> tuple[str, str]:
    """(root, rest): rest is the file's name, if it is a file, with the `key=value` folders right above it."""
    parts = path.split("/")
    cut = len(parts) if is_folder else len(parts) - 1
    while cut > 1 and _HIVE.fullmatch(parts[cut - 1]):
        cut -= 1
    return "/".join(parts[:cut]) or "/", "/".join(parts[cut:])


def _glob_expression(pattern: str) -> str:
    """A regular expression for a glob: `*` and `?` stay within a folder, `**/` spans any number of them."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translate(token: re.Match[str]) -> str:
        text = token.group()
        if text.startswith("["):
            negated = text[1] in "!^"
            characters = re.escape(text[1 + negated : -1]).replace(r"\-", "-")
            return f"[^/{characters}]" if negated else f"[{characters}]"
        return tokens.get(text) or re.escape(text)

    return re.sub(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", translate, pattern)
