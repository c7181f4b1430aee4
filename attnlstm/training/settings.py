"""How to train: every choice with its bounds, and presets, which are choices that go together with a network's sizes.

Owns names, meanings, units and defaults. Does not know how they are carried out, and nothing about data.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from attnlstm.config import Attention, ModelConfig
from attnlstm.engines import Device

ClassWeights = Literal["none", "balanced"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train. Raises ValueError on bad values. Dropout between layers is the network's: `ModelConfig.dropout`.

    learning_rate: AdamW's peak, reached after the warm-up.
    batch_rows: rows of one step.
    epochs: most passes over the training rows; the learning rate reaches 0 at the end of the last. None: as
        many as the number of rows suggests (see `schedule.usual_epochs`).
    crop_tokens: at first rows are cropped to this many tokens, at random places, and then to more and more, until the
        last steps see them whole. Short crops cost little and say much about long rows. None: always whole.
    token_dropout: share of tokens that training hides from the network, drawn anew in each step. No row is hidden
        whole.
    class_weights: "balanced" weighs the loss of a row by num_rows / (num_classes * rows of its class), so that
        every class has the same say, whatever its share; "none" weighs rows alike.
    averaging: share that each step keeps of the average of the weights over steps, which is what is validated and kept
        in their place: 0.998 goes back over the last 500 steps. 0: no average.
    patience: epochs without better weights after which training winds down: the learning rate falls to 0 in a quarter
        of the steps done so far, and then it stops. None: a third of all epochs.
    weight_decay: AdamW's, on all weights. None: as much as makes weights forget over a number of passes.
    clip_norm: longest gradient that is applied as it is.
    warmup_share: share of all steps in which the learning rate rises from 0.
    max_seconds: time limit, validation included; fewer epochs are planned if they would take longer. None:
    no limit.
    seed: of the initial weights, the order of rows, the crops and the dropout.
    device: "auto" takes a CUDA device if there is one.
    precision: of a CUDA device's products; "bfloat16" is mixed precision. A CPU always computes in float32.
    threads: slices of a batch computed side by side on a CPU; None for one a core. It does not change the weights.
    """

    learning_rate: float = 1e-2
    batch_rows: int = 64
    epochs: int | None = None
    crop_tokens: int | None = 64
    token_dropout: float = 0.0
    class_weights: ClassWeights = "none"
    averaging: float = 0.0
    patience: int | None = None
    weight_decay: float | None = None
    clip_norm: float = 1.0
    warmup_share: float = 0.1
    max_seconds: float | None = None
    seed: int = 0
    device: Device = "auto"
    precision: Precision = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_rows", "epochs", "crop_tokens", "patience", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, not {self.weight_decay}")
        for name in ("warmup_share", "token_dropout", "averaging"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be above 0 or None, not {self.max_seconds}")
        for name, known in (("class_weights", ClassWeights), ("device", Device), ("precision", Precision)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, not {getattr(self, name)!r}")


PresetName = Literal["reference", "fast", "small", "large", "base"]

DEFAULT: PresetName = "small"


@dataclass(frozen=True)
class Preset:
    """A network and the settings to train it with, which go together.

    network: fields of `ModelConfig`. training: fields of `TrainingSettings`. What is not there is as by default.
    """

    name: PresetName
    network: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)

    def config(self, classes: tuple[str, ...], attention: Attention = "additive") -> ModelConfig:
        """The network of this preset over these classes."""
        return ModelConfig(attention=attention, classes=classes, **self.network)

    def settings(self, **overrides: Any) -> TrainingSettings:
        """How to train it; what is given goes before the preset's own. Raises TypeError on an unknown name."""
        return TrainingSettings(**{**self.training, **overrides})


# Dropout and hidden tokens let a network train for as long as harder data needs without learning few rows by heart. The
# average over steps is better than the weights of any one, above all where the learning rate is still high.
_AGAINST_OVERFITTING: dict[str, Any] = {"batch_rows": 128, "token_dropout": 0.15}
_AVERAGED: dict[str, Any] = {**_AGAINST_OVERFITTING, "averaging": 0.998}
_NGRAMS: dict[str, Any] = {"longest_ngram": 5, "ngram_buckets": 1 << 15, "ngram_dropout": 0.3}

PRESETS: dict[PresetName, Preset] = {
    preset.name: preset
    for preset in (
        # The published network and the plainest training.
        Preset("reference", {"embedding_dim": 8, "hidden_size": 16}),
        # What scores fastest.
        Preset("fast", {"embedding_dim": 8, "hidden_size": 16, "dropout": 0.3}, _AVERAGED),
        # Where a few words decide, n-grams say in one look-up what an LSTM has to spell out.
        Preset("small", {"embedding_dim": 16, "hidden_size": 32, "dropout": 0.3, **_NGRAMS}, _AVERAGED),
        # For harder data, at a third of the speed.
        Preset(
            "large",
            {"embedding_dim": 32, "hidden_size": 64, "dropout": 0.3, **_NGRAMS},
            {**_AVERAGED, "learning_rate": 5e-3},
        ),
        # For a GPU, or for patience: bytes alone.
        Preset(
            "base",
            {"embedding_dim": 32, "hidden_size": 128, "dropout": 0.3},
            {**_AGAINST_OVERFITTING, "learning_rate": 5e-3},
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset of this name. Raises ValueError if there is none."""
    for known in PRESETS.values():
        if known.name == name:
            return known
    raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}")
