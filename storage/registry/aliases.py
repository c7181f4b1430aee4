"""What a name such as `champion` stands for, what it stood for before, and moving it.

    REGISTRY/aliases/champion.json   version, since, why; `before`: what it stood for, newest first;
                                     `undone`: what was rolled back, newest first

Owns the file and the rule that moves are made one at a time, each knowing the one before. Knows nothing about what is
in a checkpoint.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from storage.errors import OutputError, RegistryError
from storage.locations import Location
from storage.locks import only_run

# A move takes milliseconds, and pruning seconds.
_WAIT_SECONDS = 60.0
_LOCK = ".lock"


class RegistryBusyError(RegistryError):
    """Another process is changing the registry just now; the next try may succeed."""


class AliasMovedError(RegistryError):
    """The alias does not stand any more for what the move was decided against."""


@dataclass(frozen=True)
class Tenure:
    """A version that an alias stood for, since when (UTC, ISO 8601), and why."""

    version: str
    since: str
    why: str


@dataclass(frozen=True)
class Alias(Tenure):
    """What an alias stands for. before: what it stood for, newest first. undone: what was rolled back."""

    before: tuple[Tenure, ...] = ()
    undone: tuple[Tenure, ...] = ()


def read_alias(location: Location) -> Alias | None:
    """None if there is no such file. Raises RegistryError if it is damaged."""
    try:
        content = location.read_bytes()
    except FileNotFoundError:
        return None
    try:
        fields = json.loads(content)
        return Alias(
            **asdict(_tenure(fields)),
            before=tuple(_tenure(each) for each in fields["before"]),
            undone=tuple(_tenure(each) for each in fields.get("undone", [])),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(
            f"The alias file {location} is damaged ({error!r}). Promote a version again to replace it."
        ) from None


def promoted(old: Alias | None, version: str, why: str) -> Alias:
    """The alias after it moved to a new version."""
    before = () if old is None else (Tenure(old.version, old.since, old.why), *old.before)
    return Alias(version, _now(), why, before, () if old is None else old.undone)


def rolled_back(old: Alias, why: str) -> Alias:
    """The alias after a step back: what it stood for before, with the history of then. `old.before` is not empty."""
    previous, *before = old.before
    undone = Tenure(old.version, old.since, old.why)
    return Alias(previous.version, _now(), why, tuple(before), (undone, *old.undone))


def write_alias(location: Location, alias: Alias) -> None:
    """Put the alias in place, whole, at once."""
    location.write_bytes((json.dumps(asdict(alias), indent=2, ensure_ascii=False) + "\n").encode())


@contextmanager
def only_mover(folder: Location) -> Iterator[None]:
    """Be the only one who moves aliases of this folder. On a local disk others wait; in an object store they are told.

    Raises RegistryBusyError if it takes too long, or if another one holds the lease.
    """
    if folder.is_local:
        path = Path(folder.path)
        path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path / _LOCK, timeout=_WAIT_SECONDS):
                yield
        except Timeout:
            raise RegistryBusyError(
                f"Another process has been changing {folder} for {_WAIT_SECONDS:.0f} s. "
                "Run the same command again once it has ended."
            ) from None
        return
    with ExitStack() as held:
        try:
            held.enter_context(only_run(folder, "move of an alias"))
        except OutputError as error:
            raise RegistryBusyError(str(error)) from None
        yield


def _tenure(fields: dict[str, Any]) -> Tenure:
    version, since, why = fields["version"], fields["since"], fields["why"]
    if not all(isinstance(each, str) for each in (version, since, why)):
        raise TypeError(f"version, since and why must be text, not {version!r}, {since!r} and {why!r}")
    return Tenure(version, since, why)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
