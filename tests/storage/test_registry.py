"""Checkpoints are whole or absent, aliases move at once and remember, and nothing is ever unpickled."""

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest

from storage.errors import RegistryError
from storage.location import Location
from storage.registry import Registry, StoredCheckpoint, files_digest, read_checkpoint

FILES = {"config.json": b'{"num_classes": 2}', "model.safetensors": b"\x08weights"}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(str(tmp_path / "registry"))


@pytest.fixture
def stored(registry: Registry) -> StoredCheckpoint:
    return registry.publish(FILES, {"metrics": {"accuracy": 0.5}}, "# A checkpoint\n")


def folder_of(stored: StoredCheckpoint) -> Path:
    return Path(stored.location.path)


def test_published_checkpoint_loads_by_version_and_by_folder(registry: Registry, stored: StoredCheckpoint) -> None:
    assert re.fullmatch(r"20\d{6}T\d{6}Z-[0-9a-f]{8}", stored.version)
    assert registry.load(stored.version) == stored
    assert registry.load(str(folder_of(stored))) == stored
    assert dict(stored.files) == FILES
    assert stored.card == {"version": stored.version, "metrics": {"accuracy": 0.5}}
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
    again = registry.publish(FILES, {}, "")
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
        registry.publish(FILES, {}, "")
    assert registry.versions() == []
    assert list(Path(registry.root.path, "checkpoints").iterdir()) == []


def test_unfinished_and_half_copied_folders_are_no_versions(registry: Registry, stored: StoredCheckpoint) -> None:
    shutil.copytree(folder_of(stored), folder_of(stored).with_name(".20261122T000000Z-00000000.ab12.tmp"))
    half = folder_of(stored).with_name("half")
    half.mkdir()
    (half / "config.json").write_bytes(FILES["config.json"])
    assert registry.versions() == [stored.version]
    with pytest.raises(RegistryError) as refused:
        registry.load("half")
    assert str(refused.value) == (
        f"The checkpoint {half} lacks model.safetensors. A checkpoint has config.json and model.safetensors; "
        "copy the folder again, or choose another version."
    )


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


def test_promotion_moves_the_champion_and_keeps_its_history(registry: Registry, stored: StoredCheckpoint) -> None:
    registry.promote(stored.version, "first")
    assert registry.load("champion") == stored
    second = registry.publish({**FILES, "model.safetensors": b"better"}, {}, "")
    registry.promote(second.version, "more accurate")
    registry.promote(stored.version, "rolled back")
    alias = registry.alias()
    assert alias is not None
    assert (alias.version, alias.why) == (stored.version, "rolled back")
    assert [(before["version"], before["why"]) for before in alias.before] == [
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


def test_champion_whose_folder_is_gone_is_told(registry: Registry, stored: StoredCheckpoint) -> None:
    registry.promote(stored.version, "first")
    shutil.rmtree(folder_of(stored))
    with pytest.raises(RegistryError, match=rf"The checkpoint .*{stored.version} lacks config\.json"):
        registry.load("champion")


def test_damaged_card_is_told_and_a_missing_one_is_fine(registry: Registry, stored: StoredCheckpoint) -> None:
    card = folder_of(stored) / "card.json"
    card.write_text("{")
    with pytest.raises(RegistryError, match=r"card\.json is damaged \(.*\)\. Copy the folder again"):
        registry.load(stored.version)
    card.unlink()
    assert registry.load(str(folder_of(stored))).card == {}


def test_checkpoint_that_changed_while_in_use_is_refused(stored: StoredCheckpoint) -> None:
    assert read_checkpoint(stored.location, stored.version, digest=stored.digest) == stored
    (folder_of(stored) / "model.safetensors").write_bytes(b"other")
    with pytest.raises(RegistryError, match=r"changed while it was in use\. Run the same command again"):
        read_checkpoint(stored.location, stored.version, digest=stored.digest)


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


def test_registry_is_readable_by_people(registry: Registry, stored: StoredCheckpoint) -> None:
    registry.promote(stored.version, "naïve but first")
    text = Path(registry.root.path, "aliases/champion.json").read_text()
    assert "naïve but first" in text
    assert sorted(json.loads(text)) == ["before", "since", "version", "why"]
