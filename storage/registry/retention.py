"""What a registry keeps and for how long: checkpoints, and snapshots of trainings that are not over.

A training that was killed goes on from its snapshot; what its bytes mean is for the training to say. A checkpoint is
kept while an alias stands for it or may be rolled back to it, and while it is among the newest.
"""

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pyarrow.fs as pafs

from storage.locations import TEMPORARY_SUFFIX, Location
from storage.registry.aliases import Alias, only_mover, read_alias
from storage.registry.checkpoints import CARD, Registry

Reason = Literal["old", "left by a killed run", "a training that nobody went on with"]

# Publishing writes for seconds; what has lain half-written for longer was left by a run that was killed.
_UNFINISHED_SECONDS = 3600.0

KEPT_DAYS = 7
"""A snapshot that was not renewed for so long is of a training that nobody goes on with."""


@dataclass(frozen=True, order=True)
class Removable:
    """A folder or file of the registry that is to go. path: below the registry's root."""

    path: str
    reason: Reason
    num_bytes: int


def find_removable(registry: Registry, *, keep: int, history: int) -> list[Removable]:
    """What can go, in order of path.

    keep: the newest versions stay, so many of them. history: for each alias the versions that it last stood for stay,
    so many of them. What an alias stands for stays in any case.
    Raises RegistryError if an alias is damaged: then nobody knows what it stands for.
    """
    versions = registry.versions()
    kept = set(versions[-keep:] if keep else [])
    for alias in _aliases(registry):
        kept |= {alias.version, *(each.version for each in alias.before[:history])}
    folder = registry.checkpoints

    def path(name: str) -> str:
        return registry.root.relative((folder / name).path)

    sizes: dict[str, int] = {}
    newest: dict[str, float] = {}
    for info in folder.walk():
        name = folder.relative(info.path).partition("/")[0]
        if info.type == pafs.FileType.File:
            sizes[name] = sizes.get(name, 0) + info.size
        newest[name] = max(newest.get(name, 0.0), (info.mtime_ns or 0) / 1e9)  # folders of a store have none
    removable = [Removable(path(version), "old", sizes[version]) for version in versions if version not in kept]
    unfinished = time.time() - _UNFINISHED_SECONDS
    removable += [
        Removable(path(name), "left by a killed run", sizes.get(name, 0))
        for name, when in newest.items()
        if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX) and when < unfinished
    ]
    removable += [
        Removable(registry.root.relative(location.path), "a training that nobody went on with", location.info().size)
        for location in stale_snapshots(registry)
    ]
    return sorted(removable)


def prune(registry: Registry, *, keep: int, history: int) -> list[Removable]:
    """Remove what `find_removable` finds, and return it. No alias moves meanwhile.

    Raises RegistryBusyError if another process holds the aliases.
    """
    with only_mover(registry.aliases):
        removable = find_removable(registry, keep=keep, history=history)
        for each in removable:
            _remove(registry.root / each.path)
    return removable


def _aliases(registry: Registry) -> Iterator[Alias]:
    folder = registry.aliases
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


def snapshot_location(registry: Registry, digest: str) -> Location:
    """Where the snapshot of a training is kept."""
    return registry.trainings / f"{digest}/snapshot"


def read_snapshot(registry: Registry, digest: str) -> bytes | None:
    """The last snapshot of a training; None if there is none."""
    try:
        return snapshot_location(registry, digest).read_bytes()
    except FileNotFoundError:
        return None


def write_snapshot(registry: Registry, digest: str, content: bytes) -> None:
    """Keep a snapshot in place of the last one, whole or not at all."""
    snapshot_location(registry, digest).write_bytes(content)


def remove_snapshot(registry: Registry, digest: str) -> None:
    """To be called when the training's checkpoint is published; one that is gone is fine."""
    location = snapshot_location(registry, digest)
    location.delete()
    _remove_if_empty(location)


def stale_snapshots(registry: Registry) -> list[Location]:
    """Files of trainings that stand still since KEPT_DAYS, what killed writes left of them included."""
    oldest = datetime.now(UTC) - timedelta(days=KEPT_DAYS)
    return [
        Location(registry.root.filesystem, info.path)
        for info in registry.trainings.walk()
        if info.type == pafs.FileType.File and info.mtime < oldest
    ]


def remove_stale_snapshots(registry: Registry) -> None:
    """To be called at the start of a training."""
    for location in stale_snapshots(registry):
        location.delete()
        _remove_if_empty(location)


def _remove_if_empty(file: Location) -> None:
    if file.is_local:
        with suppress(OSError):  # a temporary file is in it, or another process was quicker
            Path(file.path).parent.rmdir()
