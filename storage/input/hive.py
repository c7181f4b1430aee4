"""Hive partitions as the names of folders spell them: `date=2026-11-01`, `city=S%C3%A3o%20Paulo`.

Owns which names are partitions, what their values are, and which names are hidden. Knows nothing about files.
"""

import re
from urllib.parse import unquote

# How Hive and Spark spell a value that is null.
_NULL = "__HIVE_DEFAULT_PARTITION__"
_PARTITION = re.compile(r"[^/=]+=[^/]*")


def partition_values(relative: str) -> dict[str, str | None]:
    """The partition columns in a file's relative name: `date=2026-11-01/part-0.parquet` gives `{"date": "2026-11-01"}`.

    A null is None. Escapes that are not UTF-8, such as `%FC`, stay as they are.
    """
    parts = (part.partition("=") for part in relative.split("/")[:-1] if _PARTITION.fullmatch(part))
    return {unescaped(key): None if value == _NULL else unescaped(value) for key, _, value in parts}


def partition_folder(relative: str) -> str:
    """The folders of a file's relative name down to its last partition: `date=2026-11-01/part-0.parquet` gives
    `date=2026-11-01`; "" if it lies in none.
    """
    folders = relative.split("/")[:-1]
    while folders and not _PARTITION.fullmatch(folders[-1]):
        folders.pop()
    return "/".join(folders)


def unescaped(text: str) -> str:
    """A name or value without its escapes, unless what they stand for is not UTF-8: several would become the same."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def split_partitions(path: str, *, is_folder: bool) -> tuple[str, str]:
    """(root, rest): rest is the file's name, if it is a file, with the `key=value` folders right above it."""
    parts = path.split("/")
    cut = len(parts) if is_folder else len(parts) - 1
    while cut > 1 and _PARTITION.fullmatch(parts[cut - 1]):
        cut -= 1
    return "/".join(parts[:cut]) or "/", "/".join(parts[cut:])


def hidden_part(relative: str) -> str | None:
    """The leading part of a relative name that ends with a hidden one; None if no part of it is hidden.

    Hidden is what begins with a dot, or with `_` unless it is a partition: `_SUCCESS`, `_temporary/`, not `_date=1/`.
    """
    parts = relative.split("/")
    for number, part in enumerate(parts, start=1):
        is_folder = number < len(parts)
        if part in (".", ".."):  # of an object's key: no path leads there, which is said of the file
            continue
        if part.startswith(".") or (part.startswith("_") and not (is_folder and "=" in part)):
            return "/".join(parts[:number])
    return None
