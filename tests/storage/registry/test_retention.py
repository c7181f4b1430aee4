"""What a registry keeps: champions and those before them, the newest, and whatever is still being written."""

import os
import shutil
import time
from pathlib import Path

import pytest

from storage.errors import RegistryError
from storage.registry.cards import Card
from storage.registry.checkpoints import Registry
from storage.registry.retention import (
    find_removable,
    prune,
    read_snapshot,
    remove_snapshot,
    remove_stale_snapshots,
    snapshot_location,
    stale_snapshots,
    write_snapshot,
)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(str(tmp_path / "registry"))


@pytest.fixture
def versions(registry: Registry) -> list[str]:
    """Eight versions, of which the second, third, fourth and first were champions, in this order."""
    for number in range(8):
        files = {"config.json": b"{}", "model.safetensors": b"%d" % number}
        published = registry.publish(files, Card(), "")
        target = Path(registry.root.path, "checkpoints", f"2026110{number + 1}T000000Z-{published.digest[:8]}")
        Path(published.location.path).rename(target)
    versions = registry.versions()
    for number in (1, 2, 3, 0):
        registry.promote(versions[number], "a test")
    return versions


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86400
    for each in (path, *path.rglob("*")):
        os.utime(each, (then, then))


def test_champion_its_history_and_the_newest_stay(registry: Registry, versions: list[str]) -> None:
    found = find_removable(registry, keep=2, history=2)
    assert [(each.path, each.reason) for each in found] == [
        (f"checkpoints/{versions[number]}", "old") for number in (1, 4, 5)
    ]
    assert all(each.num_bytes > 0 for each in found)
    assert registry.versions() == versions
    assert prune(registry, keep=2, history=2) == found
    assert registry.versions() == [versions[number] for number in (0, 2, 3, 6, 7)]
    assert sorted(path.name for path in Path(registry.root.path, "checkpoints").iterdir()) == registry.versions()
    for version in registry.versions():
        registry.load(version)
    assert prune(registry, keep=2, history=2) == []
    assert registry.roll_back("still there").version == versions[3]


def test_what_is_being_written_stays_and_what_a_kill_left_goes(registry: Registry, versions: list[str]) -> None:
    folder = Path(registry.root.path, "checkpoints")
    for name, days in ((".killed.ab12.tmp", 1), (".writing.cd34.tmp", 0)):
        shutil.copytree(folder / versions[0], folder / name)
        age(folder / name, days)
    found = prune(registry, keep=8, history=1)
    assert [(each.path, each.reason) for each in found] == [("checkpoints/.killed.ab12.tmp", "left by a killed run")]
    assert sorted(path.name for path in folder.iterdir()) == [".writing.cd34.tmp", *versions]


def test_trainings_that_stand_still_for_a_week_go(registry: Registry) -> None:
    for name, days in (("old", 8), ("recent", 6)):
        write_snapshot(registry, name, name.encode())
        age(Path(snapshot_location(registry, name).path), days)
    assert [each.path for each in find_removable(registry, keep=1, history=1)] == ["training/old/snapshot"]
    assert [location.path for location in stale_snapshots(registry)] == [snapshot_location(registry, "old").path]
    remove_stale_snapshots(registry)
    assert [path.name for path in Path(registry.root.path, "training").iterdir()] == ["recent"]


def test_snapshot_is_replaced_read_and_removed(registry: Registry) -> None:
    assert read_snapshot(registry, "d") is None
    write_snapshot(registry, "d", b"one")
    write_snapshot(registry, "d", b"two")
    assert read_snapshot(registry, "d") == b"two"
    assert [path.name for path in Path(registry.root.path, "training/d").iterdir()] == ["snapshot"]
    remove_snapshot(registry, "d")
    remove_snapshot(registry, "d")
    assert list(Path(registry.root.path, "training").iterdir()) == []


def test_nothing_goes_while_nobody_knows_what_the_champion_is(registry: Registry, versions: list[str]) -> None:
    Path(registry.root.path, "aliases/champion.json").write_text("{")
    with pytest.raises(RegistryError, match=r"champion\.json is damaged"):
        prune(registry, keep=1, history=1)
    assert registry.versions() == versions


def test_empty_registry_has_nothing_to_prune(registry: Registry) -> None:
    assert prune(registry, keep=1, history=1) == []
