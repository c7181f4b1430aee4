"""The checkpoint registry: versions as folders of files, and aliases that move atomically.

    REGISTRY/checkpoints/<version>/model.safetensors  config.json  README.md  card.json
    REGISTRY/aliases/champion.json
    REGISTRY/training/<digest>/snapshot    trainings that are not over, see `storage.registry.retention`
    REGISTRY/runs/<flow-run-id>.json       what each retraining did

Checkpoints are bytes here: what the files mean is for `attnlstm.checkpoint` to say.
"""

import errno
import hashlib
import itertools
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from storage.errors import RegistryError, did_you_mean
from storage.locations import TEMPORARY_SUFFIX, Location
from storage.registry.aliases import Alias, AliasMovedError, only_mover, promoted, read_alias, rolled_back, write_alias
from storage.registry.cards import Card, card_from_json, card_to_json

CHAMPION = "champion"
# The files that decide scores; the digest is theirs alone, so a reworded card does not make a new checkpoint.
SCORING_FILES = ("config.json", "model.safetensors")
CARD = "card.json"


@dataclass(frozen=True)
class CheckpointId:
    """Which checkpoint: its version, and the digest of the files that decide scores."""

    version: str
    digest: str


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint's files. digest: of the files that decide scores. card: `Card()` for a folder without one."""

    version: str
    location: Location
    files: Mapping[str, bytes]
    digest: str
    card: Card

    @property
    def id(self) -> CheckpointId:
        return CheckpointId(self.version, self.digest)


@dataclass(frozen=True)
class Registry:
    root: Location

    @classmethod
    def open(cls, place: str) -> "Registry":
        return cls(Location.parse(place))

    @property
    def checkpoints(self) -> Location:
        """The folder of all versions."""
        return self.root / "checkpoints"

    @property
    def aliases(self) -> Location:
        """The folder of what names such as `champion` stand for."""
        return self.root / "aliases"

    @property
    def trainings(self) -> Location:
        """The folder of the snapshots of trainings that are not over."""
        return self.root / "training"

    def run_record(self, run_id: str) -> Location:
        """Where the record of a retraining is kept."""
        return self.root / f"runs/{run_id}.json"

    def run_report(self, run_id: str) -> Location:
        """Where the page about a retraining is: beside its record."""
        return self.root / f"runs/{run_id}.html"

    def folder(self, version: str) -> Location:
        """The folder of a version, whether or not it exists."""
        return self.checkpoints / version

    @property
    def _champion(self) -> Location:
        return self.aliases / f"{CHAMPION}.json"

    def publish(self, files: Mapping[str, bytes], card: Card, readme: str) -> StoredCheckpoint:
        """Add a version: whole, under a new name, or not at all. The card is written last."""
        digest = files_digest(files)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{digest[:8]}"
        for version in (name + "+" * times for times in itertools.count()):  # the same weights twice within a second
            folder = self.folder(version)
            as_json = card_to_json(replace(card, version=version, digest=digest))
            contents = {**files, "README.md": readme.encode(), CARD: as_json}
            if not folder.is_folder() and _place(folder, contents):
                return StoredCheckpoint(version, folder, dict(files), digest, card_from_json(as_json))
        raise AssertionError("unreachable")

    def annotate(self, version: str, **fields: object) -> Card:
        """Put these fields on a version's card, all at once. Returns the card. Scores and digest stay the same."""
        card = replace(self.card(version), **fields)  # type: ignore[arg-type]
        (self.folder(version) / CARD).write_bytes(card_to_json(card))
        return card

    def versions(self) -> list[str]:
        """Complete versions, oldest first."""
        base = self.checkpoints
        cards = (base.relative(info.path) for info in base.walk() if info.base_name == CARD)
        return sorted(card.removesuffix(f"/{CARD}") for card in cards if not card.startswith("."))

    def card(self, version: str) -> Card:
        """A version's card; no other file is read. Raises RegistryError if there is none, or if it is damaged."""
        folder = self.folder(version)
        if "/" in version or (card := _read_card(folder)) is None:
            raise self._unknown(version) if "/" in version or not folder.is_folder() else _incomplete(folder)
        return card

    def alias(self) -> Alias | None:
        """What `champion` stands for; None if it was never set. Raises RegistryError if its file is damaged."""
        return read_alias(self._champion)

    def promote(self, version: str, why: str) -> Alias:
        """Let `champion` stand for `version` from now on, whatever it stood for. A damaged alias is replaced."""
        with only_mover(self.aliases):
            self._check(version)
            try:
                old = self.alias()
            except RegistryError:
                old = None
            return self._move(promoted(old, version, why))

    def succeed(self, old: str | None, version: str, why: str) -> Alias:
        """Let `champion` stand for `version`, if it still stands for `old` (None: for nothing).

        Raises AliasMovedError if it does not: then the decision is to be made again.
        """
        with only_mover(self.aliases):
            self._check(version)
            alias = self.alias()
            found = alias.version if alias else None
            if found != old:
                raise AliasMovedError(
                    f"The {CHAMPION} of {self.root} is {found} now, and {version} was compared with {old}. "
                    "Run the same command again to compare it with the new one."
                )
            return self._move(promoted(alias, version, why))

    def roll_back(self, why: str) -> Alias:
        """Let `champion` stand for what it stood for before. What is undone is remembered (`Alias.undone`).

        Raises RegistryError if there is nothing before, or if that version is gone.
        """
        with only_mover(self.aliases):
            alias = self.alias()
            if alias is None or not alias.before:
                has = f"has no {CHAMPION}" if alias is None else f"has had no other {CHAMPION} than {alias.version}"
                raise RegistryError(f"The registry {self.root} {has}, so there is nothing to roll back to.")
            moved = rolled_back(alias, why)
            self._check(moved.version)
            return self._move(moved)

    def _check(self, version: str) -> None:
        """Raises RegistryError unless this is a whole version of this registry."""
        self.card(version)
        self._read_version(version)

    def _move(self, alias: Alias) -> Alias:
        write_alias(self._champion, alias)
        return alias

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
        folder = self.folder(checkpoint)
        if "/" not in checkpoint and folder.is_folder():
            return self._read_version(checkpoint)
        folder = Location.parse(checkpoint)
        if not folder.is_folder():
            raise self._unknown(checkpoint)
        return read_checkpoint(folder, folder.name)

    def _unknown(self, checkpoint: str) -> RegistryError:
        versions = self.versions()
        known = ", ".join(versions[-5:]) or "none"
        return RegistryError(
            f"There is no checkpoint {checkpoint!r}: it is no version in {self.root} (the latest: {known}) "
            f"and no folder.{did_you_mean(checkpoint, ('champion', *versions))}"
        )

    def _read_version(self, version: str) -> StoredCheckpoint:
        folder = self.folder(version)
        stored = read_checkpoint(folder, version)
        if stored.card == Card():
            raise _incomplete(folder)
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
    card = _read_card(folder) or Card()
    if card.digest and card.digest != found:
        raise RegistryError(
            f"The checkpoint {folder} is not what was published: {' or '.join(SCORING_FILES)} differs from the digest "
            f"on its {CARD}. Copy the folder again, or choose another version."
        )
    return StoredCheckpoint(version, folder, files, found, card)


def _read_card(folder: Location) -> Card | None:
    """None if there is no card. Raises RegistryError if it is damaged."""
    try:
        content = (folder / CARD).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return card_from_json(content)
    except ValueError as error:
        raise RegistryError(f"{folder / CARD} is damaged ({error}). Copy the folder again.") from None


def _incomplete(folder: Location) -> RegistryError:
    return RegistryError(
        f"The checkpoint {folder} is incomplete: it has no {CARD}, which is written last. "
        "Choose another version, or train again."
    )


def _place(folder: Location, contents: Mapping[str, bytes]) -> bool:
    """Put a folder in place, whole; False if there is one of that name by now. Elsewhere than on a disk, the last of
    its files is the one without which it is none."""
    if not folder.is_local:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        return True
    target = Path(folder.path)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    temporary.mkdir(parents=True)
    try:
        for name, content in contents.items():
            Location.parse(temporary / name).write_bytes(content)
        temporary.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True
