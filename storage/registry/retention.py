"""Which checkpoints a registry keeps, and the removal of the others.

A checkpoint is kept while an alias stands for it or may be rolled back to it, and while it is among the newest.
"""

import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.fs as pafs

from storage.locations import TEMPORARY_SUFFIX, Location
from storage.registry.aliases import Alias, only_mover, read_alias
from storage.registry.checkpoints import CARD, Registry
from storage.registry.snapshots import stale_snapshots

Reason = Literal["old", "left by a killed run", "a training that nobody went on with"]

# Publishing writes for seconds; what has lain half-written for longer was left by a run that was killed.
_UNFINISHED_SECONDS = 3600.0


@dataclass(frozen=True, order=True)
class Doomed:
    """A folder or file of the registry that is to go. path: below the registry's root."""

    path: str
    reason: Reason
    num_bytes: int


def find_prunable(registry: Registry, *, keep: int, history: int) -> list[Doomed]:
    """What can go, in order of path.

    keep: the newest versions stay, so many of them. history: for each alias the versions that it last stood for stay,
    so many of them. What an alias stands for stays in any case.
    Raises RegistryError if an alias is damaged: then nobody knows what it stands for.
    """
    versions = registry.versions()
    kept = set(versions[-keep:] if keep else [])
    for alias in _aliases(registry):
        kept |= {alias.version, *(each.version for each in alias.before[:history])}
    folder = registry.root / "checkpoints"
    sizes: dict[str, int] = {}
    newest: dict[str, float] = {}
    for info in folder.walk():
        name = folder.relative(info.path).partition("/")[0]
        if info.type == pafs.FileType.File:
            sizes[name] = sizes.get(name, 0) + info.size
        newest[name] = max(newest.get(name, 0.0), (info.mtime_ns or 0) / 1e9)  # folders of a store have none
    doomed = [Doomed(f"checkpoints/{version}", "old", sizes[version]) for version in versions if version not in kept]
    unfinished = time.time() - _UNFINISHED_SECONDS
    doomed += [
        Doomed(f"checkpoints/{name}", "left by a killed run", sizes.get(name, 0))
        for name, when in newest.items()
        if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX) and when < unfinished
    ]
    doomed += [
        Doomed(registry.root.relative(location.path), "a training that nobody went on with", location.info().size)
        for location in stale_snapshots(registry)
    ]
    return sorted(doomed)


def prune(registry: Registry, *, keep: int, history: int) -> list[Doomed]:
    """Remove what `find_prunable` finds, and return it. No alias moves meanwhile.

    Raises RegistryBusyError if another process holds the aliases.
    """
    with only_mover(registry.root / "aliases"):
        doomed = find_prunable(registry, keep=keep, history=history)
        for each in doomed:
            _remove(registry.root / each.path)
    return doomed


def _aliases(registry: Registry) -> Iterator[Alias]:
    folder = registry.root / "aliases"
    for info in folder.walk():
        name = folder.relative(info.path)
        if name.endswith(".json") and not name.startswith("."):  # leases are in a folder of theirs
            alias = read_alias(Location(registry.root.filesystem, info.path))
            if alias is not None:
                yield alias


def _remove(place: Location) -> None:
    """Remove a folder or a file. Killed midway, what is left of a checkpoint is not a version any more."""
    if place.is_file():
        place.delete()
    elif place.is_local:
        path = Path(place.path)
        hidden = path.with_name(f".{path.name.lstrip('.')}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
        path.rename(hidden)
        shutil.rmtree(hidden)
    else:
        (place / CARD).delete()
        place.filesystem.delete_dir(place.path)
