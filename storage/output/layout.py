"""The output folder: its layout, the record of what it is, and which of its files belong together.

    OUTPUT/_dataset.json                 the settings that all of its files share
    OUTPUT/predictions/<name>.parquet    one for each shard; its appearance is the commit
    OUTPUT/attention/<name>.parquet      the same rows, in place before the predictions are
    OUTPUT/runs/<flow-run-id>.json       the manifest of each run
    OUTPUT/README.md                     what all of this is, for people

Owns these names, which no other file spells out, the settings, and the stamp in each footer. What a run holds while it
writes, `.locks` and `.leases`, is for `storage.locks`. Knows nothing about rows.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs as pafs

from storage.described.readme import output_readme
from storage.errors import FileError, OutputError
from storage.footers import Footer, read_footer
from storage.input.columns import OURS, ROW, Columns
from storage.input.shards import Shard, ShardLimits
from storage.input.sources import OUTPUT_RECORD
from storage.labelled.classes import says
from storage.locations import Location, in_store_of
from storage.locks import Hold
from storage.output.carried import Types, common_types, types_from_record, types_to_record
from storage.registry.checkpoints import CheckpointId

# Of new outputs. Those of version 1, whose files have no column `row`, are read and go on as they are.
FORMAT_VERSION = 2
_FORMAT_VERSIONS = (1, FORMAT_VERSION)
STAMP_KEY = "attnlstm"
CLASSES_KEY = b"classes"
THRESHOLDS_KEY = b"thresholds"
ABSTAIN_BELOW = "abstain_below"
# What else than settings the record holds.
_HEAD = ("format", "format_version", "source", "types", "arrow_schema")

_CLASSES_SHOWN = 5

PREDICTION = "prediction"
PREDICTIONS = "predictions"
ATTENTION = "attention"
RUNS = "runs"
README = "README.md"


@dataclass(frozen=True)
class AttentionSaving:
    """What is kept of a row's attention weights: all of them, the `top` largest with their positions, or nothing."""

    kind: Literal["full", "top", "none"] = "full"
    top: int = 0

    @classmethod
    def parse(cls, text: str) -> "AttentionSaving":
        """From `full`, `none`, or `top:K` with K at least 1."""
        if text == "full":
            return cls("full")
        if text == "none":
            return cls("none")
        if match := re.fullmatch(r"top:([1-9][0-9]*)", text):
            return cls("top", int(match.group(1)))
        raise ValueError(f"attention is saved as full, none or top:K (such as top:8), not {text!r}")

    def __str__(self) -> str:
        return f"top:{self.top}" if self.kind == "top" else self.kind


@dataclass(frozen=True)
class OutputSettings:
    """Everything that must agree for files to share one output.

    max_tokens, long_rows: as in `storage.input.tokens.TokenRules`.
    chunk_bytes: tokens read, scored and written at once, in bytes; memory grows with it, and a row group of
    attention is one chunk.
    also: what else the record says of the output, by the names that users know. It is kept and compared, and storage
    makes nothing of it; `label_column` is one of them, and stays out of the record until it is said.
    abstain_below: which rows get no prediction since their score is low, in words that storage makes nothing of; None
    for none, as in all outputs from before there were any.
    format_version: that of the output; it is never asked for.
    """

    columns: Columns = field(default_factory=Columns)
    limits: ShardLimits = field(default_factory=ShardLimits)
    attention: AttentionSaving = field(default_factory=AttentionSaving)
    max_tokens: int | None = None
    long_rows: str = "truncate"
    chunk_bytes: int = 4 << 20
    also: Mapping[str, Any] = field(default_factory=dict)
    abstain_below: str | None = None
    format_version: int = FORMAT_VERSION

    @property
    def has_rows(self) -> bool:
        """Whether predictions and attention have the column `row`."""
        return self.format_version > 1

    def record(self) -> dict[str, Any]:
        """The settings by the names that users know, ready for JSON."""
        return self._decisive() | dict(self.also)

    def _decisive(self) -> dict[str, Any]:
        """The settings that the digest in each footer is of, of which it may leave out the limit of rows."""
        return {
            "tokens_column": self.columns.tokens,
            "id_column": self.columns.id,
            "keep": list(self.columns.keep),
            "save_attention": str(self.attention),
            "max_tokens": self.max_tokens,
            "long_rows": self.long_rows,
            "shard_rows": self.limits.rows,
            "shard_bytes": self.limits.bytes,
            "chunk_bytes": self.chunk_bytes,
            **({ABSTAIN_BELOW: self.abstain_below} if self.abstain_below is not None else {}),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], format_version: int = FORMAT_VERSION) -> "OutputSettings":
        """The settings that `record` gives by these names; a name that is not there has its default."""
        defaults = cls().record()
        names = {**defaults, ABSTAIN_BELOW: None, **record}
        ours = OURS if format_version > 1 else OURS - {ROW}
        return cls(
            columns=Columns(names["tokens_column"], names["id_column"], tuple(names["keep"]), ours),
            limits=ShardLimits(names["shard_rows"], names["shard_bytes"]),
            attention=AttentionSaving.parse(names["save_attention"]),
            max_tokens=names["max_tokens"],
            long_rows=names["long_rows"],
            chunk_bytes=names["chunk_bytes"],
            also={name: value for name, value in record.items() if name not in (*defaults, ABSTAIN_BELOW)},
            abstain_below=names[ABSTAIN_BELOW],
            format_version=format_version,
        )

    @property
    def can_lengthen(self) -> bool:
        """Whether a longer max_tokens changes no file but those whose stamp says that rows were longer."""
        return self.format_version > 1 and self.long_rows == "error"

    @property
    def digest(self) -> str:
        decisive = self._decisive() | ({"max_tokens": None} if self.can_lengthen else {})
        record = json.dumps({"format_version": self.format_version, **decisive}, sort_keys=True)
        return hashlib.sha256(record.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Stamp:
    """What a file of the output was made from; the same in both files of a shard.

    num_errors: rows without a prediction, as the footer of a predictions file says. refused_above: the max_tokens that
    some of them are longer than; None if none is. Neither is a part of what is compared.
    """

    file: str
    fingerprint: str
    first_row: int
    num_rows: int
    checkpoint: str
    checkpoint_digest: str
    settings_digest: str
    format_version: int
    num_errors: int | None = field(default=None, compare=False)
    refused_above: int | None = field(default=None, compare=False)

    @classmethod
    def of(cls, shard: Shard, checkpoint: CheckpointId, settings: OutputSettings) -> "Stamp":
        return cls(
            shard.file,
            shard.fingerprint,
            shard.first_row,
            shard.num_rows,
            checkpoint.version,
            checkpoint.digest,
            settings.digest,
            settings.format_version,
        )

    def fields(self) -> dict[str, Any]:
        """What is compared, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.compare}

    def to_json(self, **counts: int) -> str:
        return json.dumps(self.fields() | counts, sort_keys=True)


@dataclass(frozen=True)
class Output:
    """An output folder and the settings it is, or will be, made with.

    hold: that of the run that writes to it. types: of `id`, the kept columns and `prediction`, as far as they are
    recorded; all files have the same. may_lengthen: whether max_tokens may be more than what is recorded.
    """

    root: Location
    settings: OutputSettings
    hold: Hold | None = None
    types: Types = field(default_factory=dict)
    may_lengthen: bool = False

    def predictions(self, name: str) -> Location:
        return self.root / f"{PREDICTIONS}/{name}"

    def attention(self, name: str) -> Location:
        return self.root / f"{ATTENTION}/{name}"

    def predictions_files(self) -> list[Location]:
        """The predictions files that are there, whatever they are of, in order of their names."""
        return (self.root / PREDICTIONS).files(".parquet")

    @classmethod
    def open(
        cls, root: Location, said: Mapping[str, Any], new: Mapping[str, Any], *, may_lengthen: bool = False
    ) -> "Output":
        """An output with the settings that it was made with or, for a new one, with those that it will be made with.

        said: settings that are asked for, by the names of `OutputSettings.record`. What is not said is as recorded or,
        in a new output, as `new` has it, which names all of them. The column of labels is among those that are kept.
        may_lengthen: whether max_tokens may be more than what is recorded, where longer rows have an error: of all
        others it changes nothing.
        Raises OutputError if something that is said differs from what is recorded, with both values, or if the record
        is damaged.
        """
        record = _read_record(root)
        recorded = _settings_in(record)
        there = {**new, **recorded}
        wanted = {**there, **said}
        label = wanted.get("label_column")
        if label is None:
            wanted.pop("label_column", None)
        elif label not in wanted["keep"]:
            wanted["keep"] = [*wanted["keep"], label]
        settings = OutputSettings.from_record(wanted, record.get("format_version", FORMAT_VERSION))
        if recorded:
            if "label_column" not in recorded and label in there["keep"]:
                there["label_column"] = label  # any column that is kept may be found to hold the labels
            _refuse_other(root, there, wanted, settings, may_lengthen)
        return cls(root, settings, types=_types_in(root, record), may_lengthen=may_lengthen)

    @classmethod
    def existing(cls, root: Location) -> "Output | None":
        """An output as it was made; None if there is none. Raises OutputError if its record is damaged."""
        record = _read_record(root)
        if not record:
            return None
        settings = OutputSettings.from_record(_settings_in(record), record["format_version"])
        return cls(root, settings, types=_types_in(root, record))

    @staticmethod
    def recorded_source(output: str) -> str:
        """The root of what the output at a path or URI was made from, as one; "" if it is new. Raises as above.

        Where the output's URI names the endpoint of its store, the source's does, too.
        """
        return in_store_of(str(_read_record(Location.parse(output)).get("source", "")), output)

    def check(self, source: str) -> None:
        """Raises OutputError if the folder holds something else than what these settings make from `source`."""
        place = self.root.info()
        if place.type == pafs.FileType.NotFound:
            return
        if place.type == pafs.FileType.File:
            raise OutputError(f"The output {self.root} is a file; an output is a folder.")
        recorded = _read_record(self.root)
        if not recorded:
            if any((self.root / folder).is_folder() for folder in (PREDICTIONS, ATTENTION)):
                raise OutputError(
                    f"The output {self.root} has predictions but no {OUTPUT_RECORD}, so what made them can't be told. "
                    "Write to another folder."
                )
            return
        wanted = self._record(source)
        there = {name: wanted[name] for name in self.settings.also} | recorded
        _refuse_other(self.root, there, wanted, self.settings, self.may_lengthen)

    def prepare(self, source: str, offered: Sequence[Types] = (), classes: pa.Array | None = None) -> "Output":
        """Record what this output is, in `_dataset.json`, and return it with the types that its files have.

        A README.md that says it to people is written where there is none.

        offered: of each input file, the types that its id and kept columns have. classes: of the checkpoint that is to
        score, see `storage.labelled.classes.class_values`. What is not recorded yet is as in a file of the output or,
        in a new one, what the input files have in common, and the type of the classes.
        Raises as `check` does, and if the classes can't be named in the type of the predictions that are there.
        """
        self.check(source)
        recorded = _types_in(self.root, _read_record(self.root))
        if PREDICTION not in recorded:
            recorded = {**self._types_of_files(), **recorded}
        types = {**common_types(offered), **recorded}
        if classes is not None and not says(classes, types.setdefault(PREDICTION, classes.type)):
            raise OutputError(
                f"The predictions in {self.root} are {types[PREDICTION]}, and the checkpoint's classes are not: "
                f"{_some(classes.to_pylist())}. Write to another folder."
            )
        record = json.dumps(self._record(source) | types_to_record(types), indent=2) + "\n"
        (self.root / OUTPUT_RECORD).write_bytes(record.encode())
        readme = self.root / README
        if self.settings.has_rows and not readme.is_file():  # or somebody's own words would be lost
            readme.write_bytes(output_readme(self.settings, types).encode())
        return replace(self, types=types)

    def _types_of_files(self) -> Types:
        """As the first whole file of predictions has them; outputs that were made before record none."""
        names = ("id", PREDICTION, *self.settings.columns.keep)
        for place in self.predictions_files():
            with suppress(FileError, FileNotFoundError):
                schema = read_footer(place).schema
                return common_types([{name: schema.field(name).type for name in names if name in schema.names}])
        return {}

    def _record(self, source: str) -> dict[str, Any]:
        version = self.settings.format_version
        return {"format": "attnlstm", "format_version": version, "source": source, **self.settings.record()}


def _refuse_other(
    root: Location, there: Mapping[str, Any], wanted: Mapping[str, Any], settings: OutputSettings, may_lengthen: bool
) -> None:
    """Raises OutputError if something of `wanted` is otherwise in an output, with both values.

    settings: those that are wanted. may_lengthen: see `Output`.
    """
    differing = [key for key in wanted if there.get(key) != wanted[key]]
    is_more = (wanted["max_tokens"] or 0) > (there.get("max_tokens") or float("inf"))
    is_longer = differing == ["max_tokens"] and settings.can_lengthen and is_more
    if not differing or (is_longer and may_lengthen):
        return
    lines = [f"  {key}: {there.get(key)!r} there, {wanted[key]!r} asked for" for key in differing]
    advice = "Write to another folder, or ask for what is there."
    if differing == ["source"]:
        advice = f"Write to another folder; or, if the input has only moved, correct `source` in {OUTPUT_RECORD}."
    if is_longer:
        advice = "Write to another folder, or have --mode errors score the files again that have longer rows."
    raise OutputError("\n".join([f"The output {root} was made differently:", *lines, advice]))


def _some(classes: list[Any]) -> str:
    return ", ".join(map(str, classes[:_CLASSES_SHOWN])) + (" ..." if len(classes) > _CLASSES_SHOWN else "")


def _read_record(root: Location) -> dict[str, Any]:
    """What `_dataset.json` says; nothing if there is none. Raises OutputError if it is damaged."""
    try:
        return _parse(root, (root / OUTPUT_RECORD).read_bytes())
    except FileNotFoundError:
        return {}


def _settings_in(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in _HEAD}


def _types_in(root: Location, record: Mapping[str, Any]) -> Types:
    try:
        return types_from_record(record)
    except ValueError as error:
        raise OutputError(f"{root / OUTPUT_RECORD} is damaged ({error}). Restore it or write elsewhere.") from None


def _parse(root: Location, content: bytes) -> dict[str, Any]:
    try:
        recorded = json.loads(content)
    except ValueError as error:
        raise OutputError(f"{root / OUTPUT_RECORD} is damaged ({error}). Restore it or write elsewhere.") from None
    if not isinstance(recorded, dict) or recorded.get("format") != "attnlstm":
        raise OutputError(f"{root / OUTPUT_RECORD} does not describe an attnlstm output. Write elsewhere.")
    if recorded.get("format_version") not in _FORMAT_VERSIONS:
        raise OutputError(
            f"{root / OUTPUT_RECORD} has format version {recorded.get('format_version')!r}, and this attnlstm knows "
            f"{' and '.join(map(str, _FORMAT_VERSIONS))}. Update attnlstm, or write elsewhere."
        )
    return recorded


def read_stamp(location: Location) -> Stamp | None:
    """The stamp of a file of the output; None if there is no whole file of ours."""
    try:
        return stamp_in(read_footer(location))
    except (FileError, FileNotFoundError, NotADirectoryError):
        return None


def stamp_in(footer: Footer) -> Stamp | None:
    """The stamp in a footer; None if it is of no file of ours."""
    try:
        said = json.loads(footer.key_values[STAMP_KEY])
        return Stamp(**{each.name: said[each.name] if each.compare else said.get(each.name) for each in fields(Stamp)})
    except (ValueError, KeyError, TypeError):
        return None


def thresholds_in(footer: Footer) -> list[float] | None:
    """The scores below which a file gives no prediction, one for each of its classes; None if it always gives one."""
    try:
        return [float(each) for each in json.loads((footer.schema.metadata or {})[THRESHOLDS_KEY])]
    except (KeyError, ValueError, TypeError):
        return None


def classes_in(footer: Footer) -> tuple[str, ...]:
    """The classes that a predictions file names, in the order of their probabilities; empty if it names none."""
    try:
        return tuple(json.loads((footer.schema.metadata or {})[CLASSES_KEY]))
    except (KeyError, ValueError, TypeError):
        return ()
