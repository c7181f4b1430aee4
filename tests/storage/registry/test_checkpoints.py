"""Checkpoints are whole or absent, aliases move one at a time and remember, and nothing is ever unpickled."""

import multiprocessing
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from storage.errors import RegistryError
from storage.locations import Location
from storage.locks import only_run
from storage.registry.aliases import AliasMovedError, RegistryBusyError
from storage.registry.cards import Card
from storage.registry.checkpoints import Registry, StoredCheckpoint, files_digest, read_checkpoint
from storage.registry.retention import prune, read_snapshot, remove_snapshot, write_snapshot

FILES = {"config.json": b'{"num_classes": 2}', "model.safetensors": b"\x08weights"}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(str(tmp_path / "registry"))


@pytest.fixture
def stored(registry: Registry) -> StoredCheckpoint:
    return registry.publish(FILES, Card(machine="a test"), "# A checkpoint\n")


def publish_three(registry: Registry) -> list[str]:
    """The versions of three checkpoints, in the order in which they were published."""
    return [registry.publish({**FILES, "model.safetensors": each}, Card(), "").version for each in (b"1", b"2", b"3")]


def folder_of(stored: StoredCheckpoint) -> Path:
    return Path(stored.location.path)


def test_published_checkpoint_loads_by_version_and_by_folder(registry: Registry, stored: StoredCheckpoint) -> None:
    assert re.fullmatch(r"20\d{6}T\d{6}Z-[0-9a-f]{8}", stored.version)
    assert registry.load(stored.version) == stored
    assert registry.load(str(folder_of(stored))) == stored
    assert dict(stored.files) == FILES
    assert stored.card == Card(version=stored.version, digest=stored.digest, machine="a test")
    assert registry.card(stored.version) == stored.card
    assert sorted(path.name for path in folder_of(stored).iterdir()) == [
        "README.md",
        "card.json",
        "config.json",
        "model.safetensors",
    ]


def test_digest_is_that_of_the_files_that_score(stored: StoredCheckpoint) -> None:
    assert stored.digest == files_digest({**FILES, "README.md": b"other"})
    assert stored.digest != files_digest({**FILES, "config.json": b"{}"})
    swapped = dict(zip(FILES, reversed(FILES.values()), strict=True))
    assert stored.digest != files_digest(swapped)


def test_publishing_twice_gives_two_versions(registry: Registry, stored: StoredCheckpoint) -> None:
    again = registry.publish(FILES, Card(), "")
    assert registry.versions() == sorted([stored.version, again.version])
    assert again.version != stored.version
    assert again.digest == stored.digest


def test_failure_while_publishing_leaves_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Location.write_bytes

    def fail_at_the_card(self: Location, content: bytes) -> None:
        if self.name == "card.json":
            raise OSError(28, "No space left on device")
        write(self, content)

    monkeypatch.setattr(Location, "write_bytes", fail_at_the_card)
    with pytest.raises(OSError, match="No space left"):
        registry.publish(FILES, Card(), "")
    assert registry.versions() == []
    assert list(Path(registry.root.path, "checkpoints").iterdir()) == []


def test_unfinished_and_half_copied_folders_are_no_versions(registry: Registry, stored: StoredCheckpoint) -> None:
    shutil.copytree(folder_of(stored), folder_of(stored).with_name(".20261122T000000Z-00000000.ab12.tmp"))
    folder_of(stored).with_name("half").mkdir()
    (folder_of(stored).with_name("half") / "config.json").write_bytes(FILES["config.json"])
    assert registry.versions() == [stored.version]


def test_unknown_checkpoint_is_refused_with_what_there_is(registry: Registry, stored: StoredCheckpoint) -> None:
    with pytest.raises(RegistryError, match=rf"no checkpoint 'v9': .* \(the latest: {stored.version}\) and no folder"):
        registry.load("v9")


def test_empty_registry_says_how_to_get_a_champion(registry: Registry) -> None:
    assert registry.versions() == []
    assert registry.alias() is None
    with pytest.raises(RegistryError, match=r"has no champion\. Train one with `attnlstm retrain SOURCE --registry /"):
        registry.load("champion")
    with pytest.raises(RegistryError, match=r"\(the latest: none\)"):
        registry.load("v9")
    with pytest.raises(RegistryError, match=r"has no champion, so there is nothing to roll back to\.$"):
        registry.roll_back("a mistake")


def test_promotion_moves_the_champion_and_keeps_its_history(registry: Registry, stored: StoredCheckpoint) -> None:
    registry.promote(stored.version, "first")
    assert registry.load("champion") == stored
    second = registry.publish({**FILES, "model.safetensors": b"better"}, Card(), "")
    registry.promote(second.version, "more accurate")
    registry.promote(stored.version, "rolled back")
    alias = registry.alias()
    assert alias is not None
    assert (alias.version, alias.why) == (stored.version, "rolled back")
    assert [(before.version, before.why) for before in alias.before] == [
        (second.version, "more accurate"),
        (stored.version, "first"),
    ]
    assert registry.load("champion").version == stored.version


def test_alias_moves_only_to_a_checkpoint_that_loads(registry: Registry, stored: StoredCheckpoint) -> None:
    registry.promote(stored.version, "first")
    with pytest.raises(RegistryError, match="no checkpoint 'v9'"):
        registry.promote("v9", "a typo")
    alias = registry.alias()
    assert alias is not None
    assert alias.version == stored.version


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": "v1"}', '"v1"'])
def test_damaged_alias_is_told_and_promoting_replaces_it(
    registry: Registry, stored: StoredCheckpoint, content: str
) -> None:
    registry.promote(stored.version, "first")
    Path(registry.root.path, "aliases/champion.json").write_text(content)
    with pytest.raises(RegistryError, match=r"champion\.json is damaged \(.*\)\. Promote a version again"):
        registry.load("champion")
    registry.promote(stored.version, "again")
    assert registry.load("champion") == stored


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"^The checkpoint .* lacks config\.json"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            r"lacks model\.safetensors\. A checkpoint",
        ),
        (
            lambda folder: (folder / "card.json").write_text("{"),
            r"card\.json is damaged \(.*\)\. Copy the folder again",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"broken off"),
            r" not what was published: config\.json or model\.safetensors differs from the digest on its card\.json\. "
            r"Copy the folder again, or choose another version\.$",
        ),
    ],
)
def test_damaged_version_is_told_and_not_promoted(
    damage: Callable[[Path], object], message: str, registry: Registry, stored: StoredCheckpoint
) -> None:
    registry.promote(stored.version, "first")
    damage(folder_of(stored))
    with pytest.raises(RegistryError, match=message):
        registry.load("champion")
    with pytest.raises(RegistryError):
        registry.promote(stored.version, "again")


def test_folder_without_a_card_is_a_checkpoint(registry: Registry, stored: StoredCheckpoint) -> None:
    (folder_of(stored) / "card.json").unlink()
    assert registry.load(str(folder_of(stored))).card == Card()


def test_checkpoint_that_changed_while_in_use_is_refused(stored: StoredCheckpoint) -> None:
    assert read_checkpoint(stored.location, stored.version, digest=stored.digest) == stored
    (folder_of(stored) / "model.safetensors").write_bytes(b"other")
    with pytest.raises(RegistryError, match=r"changed while it was in use\. Run the same command again"):
        read_checkpoint(stored.location, stored.version, digest=stored.digest)


def test_card_of_another_version_lends_neither_version_nor_digest(registry: Registry, stored: StoredCheckpoint) -> None:
    other = registry.publish({**FILES, "model.safetensors": b"other"}, stored.card, "")
    assert registry.load(other.version) == other
    assert (other.card.version, other.card.digest) == (other.version, other.digest)


def test_card_takes_notes_and_scores_stay_the_same(registry: Registry, stored: StoredCheckpoint) -> None:
    card = registry.annotate(stored.version, machine="another")
    assert card == replace(stored.card, machine="another")
    assert registry.load(stored.version).card == card
    assert registry.load(stored.version).digest == stored.digest


def test_card_is_read_without_the_weights(registry: Registry, stored: StoredCheckpoint) -> None:
    for name in FILES:
        (folder_of(stored) / name).unlink()
    assert registry.card(stored.version) == stored.card
    with pytest.raises(RegistryError, match="no checkpoint 'v9'"):
        registry.card("v9")
    with pytest.raises(RegistryError, match="no checkpoint '/elsewhere'"):
        registry.card("/elsewhere")
    (folder_of(stored) / "card.json").unlink()
    with pytest.raises(RegistryError, match=r"is incomplete: it has no card\.json, which is written last"):
        registry.card(stored.version)


def test_rollback_goes_back_step_by_step_and_remembers_what_was_undone(registry: Registry) -> None:
    first, second, third = publish_three(registry)
    for version in (first, second, third):
        registry.promote(version, f"promoted {version}")
    once = registry.roll_back("a bad day")
    assert (once.version, once.why) == (second, "a bad day")
    assert registry.load("champion").version == second
    twice = registry.roll_back("a worse one")
    assert (twice.version, twice.before) == (first, ())
    assert [(each.version, each.why) for each in twice.undone] == [(second, "a bad day"), (third, f"promoted {third}")]
    with pytest.raises(RegistryError) as refused:
        registry.roll_back("no more")
    assert str(refused.value) == (
        f"The registry {registry.root} has had no other champion than {first}, so there is nothing to roll back to."
    )
    assert registry.alias() == twice
    assert registry.promote(third, "after all").undone == twice.undone


def test_rollback_to_a_version_that_is_gone_is_refused_and_moves_nothing(
    registry: Registry, stored: StoredCheckpoint
) -> None:
    registry.promote(stored.version, "first")
    second = registry.publish({**FILES, "model.safetensors": b"better"}, Card(), "")
    registry.promote(second.version, "better")
    shutil.rmtree(folder_of(stored))
    with pytest.raises(RegistryError, match=rf"no checkpoint '{stored.version}'"):
        registry.roll_back("a mistake")
    assert registry.load("champion") == second


def test_alias_that_moved_since_the_decision_is_not_moved_by_it(registry: Registry, stored: StoredCheckpoint) -> None:
    second = registry.publish({**FILES, "model.safetensors": b"better"}, Card(), "")
    registry.succeed(None, stored.version, "the first")
    with pytest.raises(AliasMovedError) as refused:
        registry.succeed(None, second.version, "the first too")
    assert str(refused.value) == (
        f"The champion of {registry.root} is {stored.version} now, and {second.version} was compared with None. "
        "Run the same command again to compare it with the new one."
    )
    alias = registry.succeed(stored.version, second.version, "better")
    assert [(alias.version, *(each.version for each in alias.before))] == [(second.version, stored.version)]


def _promote_often(root: str, version: str, together: Barrier) -> None:
    together.wait()
    for number in range(20):
        Registry.open(root).promote(version, f"{version} {number}")


def _publish_often(root: str, version: str, together: Barrier) -> None:
    together.wait()
    for _ in range(10):
        Registry.open(root).publish(FILES, Card(), "")


def _at_once(work: Callable[[str, str, Barrier], None], registry: Registry, version: str = "") -> None:
    """Three processes that do the same from the same moment on."""
    forkserver = multiprocessing.get_context("forkserver")
    together = forkserver.Barrier(3)
    children = [forkserver.Process(target=work, args=(str(registry.root), version, together)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]


def test_moves_of_several_processes_are_all_remembered(registry: Registry, stored: StoredCheckpoint) -> None:
    _at_once(_promote_often, registry, stored.version)
    alias = registry.alias()
    assert alias is not None
    assert len(alias.before) == 59


def test_the_same_weights_published_by_several_processes_at_once_are_versions_of_their_own(registry: Registry) -> None:
    _at_once(_publish_often, registry)
    assert len(registry.versions()) == 30
    for version in registry.versions():
        registry.load(version)


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_pickles_are_never_opened(registry: Registry, stored: StoredCheckpoint, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    only_pickles = tmp_path / "published"
    only_pickles.mkdir()
    for folder in (only_pickles, folder_of(stored)):
        for name in ("pytorch_model.bin", "model.pt", "card.pkl"):
            (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(RegistryError, match=r"lacks config\.json"):
        registry.load(str(only_pickles))
    assert dict(registry.load(stored.version).files) == FILES
    (folder_of(stored) / "card.json").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(RegistryError, match=r"card\.json is damaged"):
        registry.load(stored.version)
    assert not mark.exists()
    pickle.loads((only_pickles / "model.pt").read_bytes())
    assert mark.exists()  # the bomb would have gone off


def test_aliases_in_an_object_store_move_under_a_lease(s3: Callable[[str], str]) -> None:
    registry = Registry.open(s3("registry"))
    versions = publish_three(registry)
    registry.succeed(None, versions[0], "the first")
    registry.succeed(versions[0], versions[1], "better")
    with only_run(registry.root / "aliases", "a test"), pytest.raises(RegistryBusyError, match="run a test, process"):
        registry.promote(versions[2], "at the same time")
    assert registry.roll_back("a bad day").version == versions[0]
    registry.annotate(versions[2], machine="seen")
    assert registry.load(versions[2]).card.machine == "seen"


def test_object_store_is_pruned_and_keeps_snapshots(s3: Callable[[str], str]) -> None:
    registry = Registry.open(s3("registry"))
    versions = publish_three(registry)
    registry.promote(min(versions), "a test")
    write_snapshot(registry, "d", b"going on")
    assert [each.path for each in prune(registry, keep=1, history=1)] == [f"checkpoints/{sorted(versions)[1]}"]
    assert registry.versions() == [min(versions), max(versions)]
    assert read_snapshot(registry, "d") == b"going on"
    remove_snapshot(registry, "d")
    assert read_snapshot(registry, "d") is None
