"""How to train: one frozen model of every choice, with bounds.

Owns names, meanings, units and defaults. Knows nothing about how they are carried out.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from attnlstm.engines import Device

ClassWeights = Literal["none", "balanced"]
Precision = Literal["float32", "bf16"]


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
    patience: epochs without better weights after which training winds down: the learning rate falls to 0 in a quarter
        of the steps done so far, and then it stops. None: a third of all epochs.
    weight_decay: AdamW's, on all weights. None: as much as makes weights forget over a number of passes.
    clip_norm: longest gradient that is applied as it is.
    warmup_share: share of all steps in which the learning rate rises from 0.
    max_seconds: time limit, validation included; fewer epochs are planned if they would take longer. None:
    no limit.
    seed: of the initial weights, the order of rows, the crops and the dropout.
    device: "auto" takes a CUDA device if there is one.
    precision: of a CUDA device's products; "bf16" is mixed precision. A CPU always computes in float32.
    threads: slices of a batch computed side by side on a CPU; None for one a core. It does not change the weights.
    """

    learning_rate: float = 1e-2
    batch_rows: int = 64
    epochs: int | None = None
    crop_tokens: int | None = 64
    token_dropout: float = 0.0
    class_weights: ClassWeights = "none"
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
        for name in ("warmup_share", "token_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be above 0 or None, not {self.max_seconds}")
        for name, known in (("class_weights", ClassWeights), ("device", Device), ("precision", Precision)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, not {getattr(self, name)!r}")
