"""Snapshots of trainings that are not over, so that one that was killed goes on where it was.

    REGISTRY/training/<digest>/snapshot    the digest is of the rows and the settings

What a snapshot's bytes mean is for the training to say.
"""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.fs as pafs

from storage.locations import Location
from storage.registry.checkpoints import Registry

KEPT_DAYS = 7
"""A snapshot that was not renewed for so long is of a training that nobody goes on with."""

_FOLDER = "training"
_FILE = "snapshot"


def snapshot_location(registry: Registry, digest: str) -> Location:
    """Where the snapshot of a training is kept."""
    return registry.root / f"{_FOLDER}/{digest}/{_FILE}"


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


def stale_snapshots(registry: Registry, kept_days: float = KEPT_DAYS) -> list[Location]:
    """Files of trainings that stand still since `kept_days`, what killed writes left of them included."""
    oldest = datetime.now(UTC) - timedelta(days=kept_days)
    return [
        Location(registry.root.filesystem, info.path)
        for info in (registry.root / _FOLDER).walk()
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
