"""The checkpoint registry: versions as folders of files, and aliases that move atomically.

    REGISTRY/checkpoints/<version>/model.safetensors  config.json  card.json  README.md
    REGISTRY/aliases/champion.json

Checkpoints are bytes here: what the files mean is for `attnlstm.checkpoint` to say.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from storage.errors import RegistryError
from storage.location import TEMPORARY_SUFFIX, Location

CHAMPION = "champion"
# The files that decide scores; the digest is theirs alone, so a reworded card does not make a new checkpoint.
SCORING_FILES = ("config.json", "model.safetensors")
_CARD = "card.json"


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint's files. digest: of the files that decide scores. card: empty for a folder without one."""

    version: str
    location: Location
    files: Mapping[str, bytes]
    digest: str
    card: dict[str, Any]


@dataclass(frozen=True)
class Alias:
    """Which version a name stands for, since when (UTC, ISO 8601), why, and what it stood for before."""

    version: str
    since: str
    why: str
    before: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Registry:
    root: Location

    @classmethod
    def open(cls, place: str) -> "Registry":
        return cls(Location.parse(place))

    def _folder(self, version: str) -> Location:
        return self.root / f"checkpoints/{version}"

    def publish(self, files: Mapping[str, bytes], card: Mapping[str, Any], readme: str) -> StoredCheckpoint:
        """Add a version: whole, under a new name, or not at all. The card is written last."""
        digest = files_digest(files)
        version = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{digest[:8]}"
        while (folder := self._folder(version)).is_folder():  # the same weights twice within a second
            version += "+"
        contents = {**files, "README.md": readme.encode(), _CARD: _to_json({"version": version, **card})}
        if folder.is_local:
            _place_folder(Path(folder.path), contents)
        else:
            for name, content in contents.items():
                (folder / name).write_bytes(content)
        return StoredCheckpoint(version, folder, dict(files), digest, json.loads(contents[_CARD]))

    def versions(self) -> list[str]:
        """Complete versions, oldest first."""
        base = self.root / "checkpoints"
        cards = (base.relative(info.path) for info in base.walk() if info.base_name == _CARD)
        return sorted(card.removesuffix(f"/{_CARD}") for card in cards if not card.startswith("."))

    def alias(self, name: str = CHAMPION) -> Alias | None:
        """What `name` stands for; None if it was never set. Raises RegistryError if its file is damaged."""
        location = self.root / f"aliases/{name}.json"
        try:
            fields = json.loads(location.read_bytes())
            return Alias(fields["version"], fields["since"], fields["why"], tuple(fields["before"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(
                f"The alias file {location} is damaged ({error!r}). Promote a version again to replace it."
            ) from None

    def promote(self, version: str, why: str, name: str = CHAMPION) -> Alias:
        """Let `name` stand for `version` from now on."""
        self.load(version)
        try:
            old = self.alias(name)
        except RegistryError:
            old = None
        before = () if old is None else ({"version": old.version, "since": old.since, "why": old.why}, *old.before)
        new = Alias(version, datetime.now(UTC).isoformat(timespec="seconds"), why, before)
        record = {"version": new.version, "since": new.since, "why": new.why, "before": list(new.before)}
        (self.root / f"aliases/{name}.json").write_bytes(_to_json(record))
        return new

    def load(self, checkpoint: str) -> StoredCheckpoint:
        """Read a checkpoint: `champion`, a version of this registry, or any folder with a checkpoint's files.

        Raises RegistryError if there is no such checkpoint, or a file of it is missing.
        """
        if checkpoint == CHAMPION:
            alias = self.alias()
            if alias is None:
                raise RegistryError(
                    f"The registry {self.root} has no champion. Train one with `attnlstm retrain SOURCE "
                    f"--registry {self.root}`, or name a checkpoint."
                )
            return self._read_version(alias.version)
        folder = self._folder(checkpoint)
        if "/" not in checkpoint and folder.is_folder():
            return self._read_version(checkpoint)
        folder = Location.parse(checkpoint)
        if not folder.is_folder():
            known = ", ".join(self.versions()[-5:]) or "none"
            raise RegistryError(
                f"There is no checkpoint {checkpoint!r}: it is no version in {self.root} (the latest: {known}) "
                "and no folder."
            )
        return read_checkpoint(folder, folder.name)

    def _read_version(self, version: str) -> StoredCheckpoint:
        folder = self._folder(version)
        stored = read_checkpoint(folder, version)
        if not stored.card:
            raise RegistryError(
                f"The checkpoint {folder} is incomplete: it has no {_CARD}, which is written last. "
                "Choose another version, or train again."
            )
        return stored


def files_digest(files: Mapping[str, bytes]) -> str:
    """A digest of the files that decide scores, equal wherever the same checkpoint lies."""
    digest = hashlib.sha256()
    for name in SCORING_FILES:
        digest.update(hashlib.sha256(files[name]).digest())
    return digest.hexdigest()[:32]


def read_checkpoint(folder: Location, version: str, *, digest: str | None = None) -> StoredCheckpoint:
    """Read a checkpoint's folder. Raises RegistryError if a file is missing, or if `digest` is given and differs."""
    files = {}
    for name in SCORING_FILES:
        try:
            files[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            raise RegistryError(
                f"The checkpoint {folder} lacks {name}. A checkpoint has {' and '.join(SCORING_FILES)}; "
                "copy the folder again, or choose another version."
            ) from None
    found = files_digest(files)
    if digest is not None and found != digest:
        raise RegistryError(f"The checkpoint {folder} changed while it was in use. Run the same command again.")
    card: dict[str, Any] = {}
    if (folder / _CARD).info().type == pafs.FileType.File:
        try:
            card = json.loads((folder / _CARD).read_bytes())
        except ValueError as error:
            raise RegistryError(f"{folder / _CARD} is damaged ({error}). Copy the folder again.") from None
    return StoredCheckpoint(version, folder, files, found, card)


def _place_folder(target: Path, contents: Mapping[str, bytes]) -> None:
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    temporary.mkdir(parents=True)
    try:
        for name, content in contents.items():
            Location.parse(temporary / name).write_bytes(content)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _to_json(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
