"""The errors a user of stored data can meet.

Bad data and refused requests are `StorageError`s: trying again cannot help, so they are never retried.
Faults that may pass (network, disk) stay the `OSError`s that Python and Arrow raise.
"""


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
