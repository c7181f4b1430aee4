"""The card of a checkpoint, `card.json`: what the checkpoint says of itself, as one typed record.

Owns the fields, the format version, and every check on the way in. Cards that older versions wrote are read: what they
lack has a default. Knows neither where cards lie nor what is decided from them; what a drift reference, a measure of
the attention, or the settings and epochs of a training hold is for those to say who make them.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType
from typing import Any, Self, get_args, get_origin

FORMAT_VERSION = 1
"""Goes up when what a field means changes. More fields do not raise it: who does not know them keeps them."""

MEASURE_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "log_loss": "log loss",
    "auroc": "AUROC",
    "ece": "calibration error",
    "ece_before_scaling": "before scaling",
    "majority_accuracy": "commonest class",
}
"""What the measures of `Figures` are called for people, in the order in which they are said."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a card. others: fields that only a newer version knows, which are written back as they were read.

    A field without a default is always written, as null where it is None; one whose default is None is then left out.
    """

    others: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, record: Mapping[str, Any], where: str = "") -> Self:
        """The part whose `record` this is. Raises ValueError if a field is missing or of another type, naming it.

        where: the part's own name, for messages.
        """
        found: dict[str, Any] = {}
        own = [each for each in fields(cls) if each.name != "others"]
        for each in own:
            name = f"{where}.{each.name}" if where else each.name
            if each.name in record:
                found[each.name] = _fitting(each.type, record[each.name], name)
            elif each.default is MISSING and each.default_factory is MISSING:
                if NoneType not in get_args(each.type):
                    raise ValueError(f"{name} is missing")
                found[each.name] = None
        known = {each.name for each in own}
        return cls(**found, others={name: value for name, value in record.items() if name not in known})

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        values = {each.name: (each, getattr(self, each.name)) for each in fields(self) if each.name != "others"}
        kept = {name: value for name, (each, value) in values.items() if value is not None or each.default is MISSING}
        return {name: _plain(value) for name, value in kept.items()} | self.others


@dataclass(frozen=True, kw_only=True)
class ClassFigures(Part):
    precision: float
    recall: float
    f1: float
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Figures(Part):
    """How good a checkpoint is on held-out rows; what each figure means, `attnlstm.evaluation.metrics` says.

    ece_before_scaling: the calibration error without the temperature, on the card of a trained checkpoint.
    accuracy_interval: between which two bounds the accuracy is, see `attnlstm.evaluation.chance`.
    """

    num_rows: int
    accuracy: float
    macro_f1: float
    majority_accuracy: float
    log_loss: float
    auroc: float | None
    ece: float
    per_class: dict[str, ClassFigures]
    confusion: tuple[tuple[int, ...], ...]
    ece_before_scaling: float | None = None
    accuracy_interval: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Training(Part):
    """How the weights came about. seconds: of all of it. digest: of the rows and settings, "" where nobody knows it."""

    settings: dict[str, Any]
    stopped_by: str
    best_epoch: int
    seconds: float
    epochs: tuple[dict[str, Any], ...]
    digest: str = ""
    preset: str = "reference"
    started_from: str = "scratch"


@dataclass(frozen=True, kw_only=True)
class Data(Part):
    """Which rows a checkpoint was trained and measured on; see `LabelledSource` and `LabelledRows`.

    duplicates: the counts of `storage.labelled.rows.Duplicates`. outside: of the unusable rows those with token ids
    outside the vocabulary, as in `storage.labelled.vocabulary.Outside`. rows: how many are on each side of the split.
    """

    source: str
    also: tuple[str, ...] = ()
    tokens_column: str
    label_column: str
    group_column: str
    partition: str | None
    window: str | None
    since: str | None
    num_files: int
    num_unlabelled: int
    num_unusable: int
    outside: dict[str, int] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    split_by: str
    rows: dict[str, int]
    rows_per_class: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Sample(Part):
    """A few test rows by the hash of their tokens, and the probabilities that training saw of each."""

    contents: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class AtThreshold(Part):
    """What is left of the test rows where a score or a precision is asked for, and the share of right ones of it."""

    wanted: float
    coverage: float
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Abstention(Part):
    """What becomes of predictions if those with low scores are withheld; see `attnlstm.evaluation.abstention`.

    scores, precisions: what is left of the test rows at each. by_class: pairs (score, precision), by validation rows.
    """

    scores: tuple[AtThreshold, ...]
    precisions: tuple[AtThreshold, ...]
    by_class: dict[str, tuple[tuple[float, ...], ...]]


@dataclass(frozen=True, kw_only=True)
class Judgement(Part):
    """Whether the checkpoint was promoted, and why. at: UTC, ISO 8601. against: the version of the champion then.

    margin: how much worse it might have been by `metric`. classes: those that only one of the two knows. From
    `num_rows` on, both on the same held-out rows; see `attnlstm.evaluation.comparison`. num_folds: of the
    cross-validation by which these figures are; None if they are of the checkpoints themselves, on the test rows.
    """

    outcome: str
    why: str
    objections: tuple[str, ...]
    at: str
    against: str | None
    metric: str
    margin: float
    classes: dict[str, tuple[str, ...]]
    num_rows: int
    champion: Figures
    challenger: Figures
    difference: dict[str, Any]
    flips: dict[str, float]
    lost_classes: tuple[str, ...]
    examples: dict[str, tuple[dict[str, str], ...]]
    num_folds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Card(Part):
    """All that is known of a checkpoint. One from elsewhere may have none of it, which `Card()` stands for.

    version, digest: as in `StoredCheckpoint`, "" before it is published. test: figures on the test rows.
    drift: what the test rows look like. faithfulness: how far the attention can be trusted. added_from: where the files
    were, of a checkpoint that was made elsewhere. versions: of the packages that it was made with.
    """

    format_version: int = FORMAT_VERSION
    version: str = ""
    test: Figures | None = None
    training: Training | None = None
    data: Data | None = None
    sample: Sample | None = None
    drift: dict[str, Any] | None = None
    faithfulness: dict[str, Any] | None = None
    abstention: Abstention | None = None
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    added_from: str | None = None
    digest: str = ""
    judgement: Judgement | None = None


def card_from_json(content: bytes) -> Card:
    """Raises ValueError if these are not the bytes of a card, with what is wrong and where in it."""
    record = json.loads(content)
    if not isinstance(record, dict):
        raise ValueError(f"it holds {type(record).__name__} and no object")
    version = record.get("format_version", FORMAT_VERSION)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ValueError(f"it has format version {version}, and this attnlstm knows {FORMAT_VERSION}; update attnlstm")
    return Card.of(record)


def card_to_json(card: Card) -> bytes:
    """The bytes of `card.json`."""
    return (json.dumps(card.record(), indent=2, ensure_ascii=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.record()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _fitting(kind: Any, value: Any, where: str) -> Any:
    """The value as a field of this type has it. Raises ValueError if it is of another."""
    origin, wanted = get_origin(kind), get_args(kind)
    if kind is Any or (value is None and NoneType in wanted):
        return value
    if NoneType in wanted:
        return _fitting(wanted[0], value, where)
    if origin is dict and isinstance(value, dict):
        return {name: _fitting(wanted[1], each, f"{where}.{name}") for name, each in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_fitting(wanted[0], each, f"{where}[{place}]") for place, each in enumerate(value))
    if not origin and issubclass(kind, Part) and isinstance(value, dict):
        return kind.of(value, where)
    if origin or isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        expected = {str: "text", int: "a whole number", float: "a number", tuple: "a list"}.get(origin or kind)
        raise ValueError(f"{where} is {value!r:.60} and not {expected or 'an object'}")
    return value
