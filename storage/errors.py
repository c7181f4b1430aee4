"""The errors a user of stored data can meet, and what they say of a name that is not there.

Bad data and refused requests are `StorageError`s: trying again cannot help, so they are never retried.
Faults that may pass (network, disk) stay the `OSError`s that Python and Arrow raise.
"""

import difflib
import re
from collections.abc import Iterable

_NUMBER = re.compile(r"[0-9]+")


class StorageError(Exception):
    """A message for the user: what was expected, what was found, where, and what to do."""


class SourceError(StorageError):
    """The input as a whole can't be used: missing, empty, or not what the columns ask for."""


class FileError(StorageError):
    """One input file can't be read or lacks a column; whoever reports it names the file. Others are unaffected."""


class OutputError(StorageError):
    """The output was made with other settings or for another source, so writing to it is refused."""


class RegistryError(StorageError):
    """A checkpoint or an alias is missing, incomplete or damaged."""


def first_line(error: BaseException) -> str:
    """What an error says, without what Arrow and the filesystems add below; its type if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Such as " Did you mean 'tokens'?", of a name that is not among those that are known; "" if none is like it.

    Those that differ in numbers only, as two dates do, are not taken for each other.
    """
    folded = {other.casefold(): other for other in known if not _differ_in_numbers(name, other)}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""


def _differ_in_numbers(one: str, other: str) -> bool:
    (texts, numbers), (other_texts, other_numbers) = (
        (_NUMBER.split(text), [int(number) for number in _NUMBER.findall(text)]) for text in (one, other)
    )
    return texts == other_texts and numbers != other_numbers
