"""What a network looks like: its sizes, its attention, its classes, and their form as `config.json`.

Knows nothing about torch or weights: it reads and writes text, and sizes can be read off the shapes of weights.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, Self, get_args

Attention = Literal["additive", "multihead"]
LabelType = Literal["string", "int64", "bool"]
NgramHash = Literal["polynomial-31"]

REQUIRED_KEYS = (
    "attention",
    "num_embeddings",
    "embedding_dim",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_classes",
    "classes",
    "temperature",
)
"""What every `config.json` must state; the rest has defaults."""

HUB_KEYS = ("id2label", "label2id")
"""What model hubs' scripts read the names of classes from; these say what `classes` says."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and names of one network. The defaults are the reference network's. Raises ValueError on bad
    values.

    attention: how hidden states are pooled over time.
    num_embeddings: vocabulary with padding, which is the last id.
    embedding_dim: features of one embedded token.
    hidden_size: units of one direction of one LSTM layer.
    num_layers: bidirectional LSTM layers.
    num_heads: heads of the multihead attention; must divide 2 * hidden_size.
    attention_size: rows of the additive attention's matrix; None for 2 * hidden_size.
    dropout: share of each LSTM layer's outputs dropped in training, save for the last layer's.
    longest_ngram: to each token's embedding those of the n-grams that end at it are added, of 2 up to so many tokens;
        their sum over a row, by the square root of its length, goes to its context. 1: there are none.
    ngram_buckets: rows of the table of each length, onto which n-grams are hashed; a power of two.
    ngram_dropout: share of what n-grams add that is dropped in training.
    ngram_hash: by which hash (see `ngrams`). `config.json` has these four if there are n-grams.
    classes: names of the classes, in the order of the logits.
    num_classes: as many as `classes`; it need not be given.
    label_type: what the names of the classes say, which is the type of predictions: text, integers, or false and true.
        `config.json` has it unless it is "string".
    temperature: what logits are divided by before the softmax (1 for an uncalibrated network).
    """

    attention: Attention = "additive"
    num_embeddings: int = 257
    embedding_dim: int = 8
    hidden_size: int = 16
    num_layers: int = 2
    num_heads: int = 1
    attention_size: int | None = None
    dropout: float = 0.0
    longest_ngram: int = 1
    ngram_buckets: int = 0
    ngram_dropout: float = 0.0
    ngram_hash: NgramHash = "polynomial-31"
    classes: tuple[str, ...]
    num_classes: int = 0
    label_type: LabelType = "string"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.attention not in get_args(Attention):
            raise ValueError(f"attention must be 'additive' or 'multihead', not {self.attention!r}")
        _check_integer("num_embeddings", self.num_embeddings, at_least=2)
        for name in ("embedding_dim", "hidden_size", "num_layers", "num_heads"):
            _check_integer(name, getattr(self, name), at_least=1)
        if self.attention_size is not None:
            _check_integer("attention_size", self.attention_size, at_least=1)
            if self.attention != "additive":
                raise ValueError(f"attention_size is for additive attention; got {self.attention_size}")
        if self.attention == "additive" and self.num_heads != 1:
            raise ValueError(f"num_heads is for multihead attention; additive has one head, not {self.num_heads}")
        if 2 * self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads must divide 2 * hidden_size = {2 * self.hidden_size}, not {self.num_heads}")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")
        if self.dropout and self.num_layers == 1:
            raise ValueError(f"dropout acts between layers, and there is one; got {self.dropout}")
        self._check_ngrams()
        if not _is_number(self.temperature) or not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, not {self.temperature!r}")
        self._check_classes()

    def _check_ngrams(self) -> None:
        _check_integer("longest_ngram", self.longest_ngram, at_least=1)
        if self.longest_ngram > 1:
            _check_integer("ngram_buckets", self.ngram_buckets, at_least=1)
            if self.ngram_buckets & (self.ngram_buckets - 1):
                raise ValueError(f"ngram_buckets must be a power of two, not {self.ngram_buckets}")
        elif self.ngram_buckets or self.ngram_dropout:
            raise ValueError("ngram_buckets and ngram_dropout are for networks whose longest_ngram is above 1")
        if not _is_number(self.ngram_dropout) or not 0 <= self.ngram_dropout < 1:
            raise ValueError(f"ngram_dropout must be at least 0 and below 1, not {self.ngram_dropout!r}")
        if self.ngram_hash not in get_args(NgramHash):
            raise ValueError(f"ngram_hash must be {' or '.join(get_args(NgramHash))}, not {self.ngram_hash!r}")

    def _check_classes(self) -> None:
        given: object = self.classes  # JSON gives a list, and perhaps anything
        if not isinstance(given, list | tuple):
            raise ValueError(f"classes must be a list of names, not {given!r}")
        object.__setattr__(self, "classes", tuple(given))
        odd = [name for name in self.classes if not isinstance(name, str)]
        if odd:
            raise ValueError(f"classes must be names; got {odd[0]!r}")
        if len(self.classes) < 2:
            raise ValueError(f"at least two classes are needed; got {list(self.classes)}")
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ValueError(f"classes must differ; {twice!r} is there more than once")
        object.__setattr__(self, "num_classes", self.num_classes or len(self.classes))
        _check_integer("num_classes", self.num_classes, at_least=2)
        if self.num_classes != len(self.classes):
            raise ValueError(f"num_classes is {self.num_classes}, but {len(self.classes)} classes are named")
        if self.label_type not in get_args(LabelType):
            raise ValueError(f"label_type must be one of {', '.join(get_args(LabelType))}, not {self.label_type!r}")
        for name in self.classes:
            if not _says(self.label_type, name):
                raise ValueError(f"label_type is {self.label_type}, and the class {name!r} is none")

    @property
    def padding_id(self) -> int:
        """The last token id. Real tokens are the ids below it."""
        return self.num_embeddings - 1

    def to_json(self) -> str:
        """The text of `config.json`, the same for equal configurations."""
        record = asdict(self)
        if self.label_type == "string":
            del record["label_type"]  # as before there were others, so that what reads no other reads these
        if self.longest_ngram == 1:
            for name in ("longest_ngram", "ngram_buckets", "ngram_dropout", "ngram_hash"):
                del record[name]
        return json.dumps(record, indent=2, ensure_ascii=False) + "\n"

    def to_hub_json(self) -> str:
        """The text of `config.json` as model hubs' scripts read it, which `from_json` takes as well."""
        record = json.loads(self.to_json()) | self._for_hubs()
        return json.dumps(record, indent=2, ensure_ascii=False) + "\n"

    def _for_hubs(self) -> dict[str, dict[str, object]]:
        id2label: dict[str, object] = {str(number): name for number, name in enumerate(self.classes)}
        return dict(zip(HUB_KEYS, (id2label, {name: number for number, name in enumerate(self.classes)}), strict=True))

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Self:
        """The configuration that `to_json` or `to_hub_json` wrote. where: its place, for messages.

        Raises ValueError.
        """
        try:
            read = json.loads(text)
        except ValueError as error:  # covers bytes that are not UTF-8
            raise ValueError(f"{where} is not JSON: {error}") from error
        if not isinstance(read, dict):
            raise ValueError(f"{where} must hold a JSON object, not {type(read).__name__}")
        missing = [key for key in REQUIRED_KEYS if key not in read]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}")
        for_hubs = {key: read.pop(key) for key in HUB_KEYS if key in read}
        known = [field.name for field in fields(cls)]
        unknown = [key for key in read if key not in known]
        if unknown:
            raise ValueError(f"{where} has unknown keys: {', '.join(unknown)}; known are {', '.join(known)}")
        try:
            config = cls(**read)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if differing := [key for key, value in for_hubs.items() if value != config._for_hubs()[key]]:
            raise ValueError(f"{where}: {differing[0]} and classes name other classes; make them agree")
        return config

    @classmethod
    def from_shapes(
        cls,
        shapes: Mapping[str, Sequence[int]],
        *,
        classes: Sequence[str] | None = None,
        num_heads: int = 1,
    ) -> Self:
        """The configuration that weights of these shapes belong to.

        shapes: by parameter name, as in a state_dict.
        classes: names in the order of the logits; None numbers them "0", "1", ...
        num_heads: of a multihead attention; the one size that weights do not show.
        Raises ValueError if a name that shows a size is missing.
        """
        try:
            attention: Attention = "additive" if "attention.qk_weights.weight" in shapes else "multihead"
            num_embeddings, embedding_dim = shapes["embedding.weight"]
            hidden_size = shapes["sequence.weight_hh_l0"][1]
            num_classes = shapes["mlp.2.weight"][0]
            attention_size = None
            if attention == "additive":
                rows = shapes["attention.qk_weights.weight"][0]
                attention_size = None if rows == 2 * hidden_size else rows
        except KeyError as error:
            raise ValueError(f"not an attention-LSTM's weights: {error.args[0]} is missing") from None
        num_tables, num_buckets, _ = shapes.get("ngrams", (0, 0, 0))
        num_layers = sum(f"sequence.weight_hh_l{layer}" in shapes for layer in range(len(shapes)))
        return cls(
            attention=attention,
            num_embeddings=num_embeddings,
            embedding_dim=embedding_dim,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            attention_size=attention_size,
            longest_ngram=1 + num_tables,
            ngram_buckets=num_buckets,
            classes=tuple(map(str, range(num_classes))) if classes is None else tuple(classes),
            num_classes=num_classes,
        )


def differences(found: ModelConfig, wanted: ModelConfig, *, apart_from: Collection[str] = ()) -> str:
    """In which fields two configurations differ, such as "hidden_size 16, not 32"; "" if in none.

    apart_from: fields that may differ.
    """
    ours = asdict(wanted)
    return "; ".join(
        f"{name} {value}, not {ours[name]}"
        for name, value in asdict(found).items()
        if name not in apart_from and value != ours[name]
    )


def _check_integer(name: str, value: object, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, not {value!r}")


def _says(label_type: LabelType, name: str) -> bool:
    """Whether a class name is the text of a value of this type."""
    if label_type == "bool":
        return name in ("false", "true")
    if label_type == "int64":
        digits = name.removeprefix("-")
        return digits.isdecimal() and len(digits) < 20 and -(2**63) <= int(name) < 2**63 and str(int(name)) == name
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
