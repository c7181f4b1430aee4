"""The schedule of a training: how many steps there will be, and so the learning rate and the crop of each.

Owns the plan and what shortens it. Knows nothing about networks or rows.
"""

import math
import time
from dataclasses import asdict, dataclass
from typing import Literal

from attnlstm.training.settings import TrainingSettings

USUAL_EPOCHS, MANY_EPOCHS = 12, 60
FEWEST_STEPS, MANY_STEPS = 2500, 6000
"""How long to train unless told: MANY_STEPS, but no more passes than MANY_EPOCHS, which learn few rows by heart; in any
case USUAL_EPOCHS and FEWEST_STEPS."""

DECAY_EPOCHS = 10
HIGHEST_DECAY = 0.3
"""AdamW's weights are an average over the last 1 / (learning rate x weight decay) steps. What is best for it is a
number of passes, whatever the number of rows (Wang and Aitchison 2024, arXiv 2405.13698); on very few rows it would
leave nothing to learn with, hence the bound."""

NGRAM_DECAY = 24
"""Times as much for the embeddings of n-grams, most of which a pass meets a few times only: those of a row that the
network knows by heart are forgotten before the next pass, those that many rows agree on are not."""

USUAL_PATIENCE, FEWEST_PATIENCE = 1 / 3, 3
"""Epochs without better weights after which training winds down, unless told: a share of all, and at least so many.
While the learning rate is high, validation goes up and down."""

WIND_DOWN_SHARE = 0.25
"""Steps from the end of patience to the end of training, as a share of those before."""

StoppedBy = Literal["epochs", "patience", "time"]


def usual_epochs(steps_per_epoch: int) -> int:
    """Passes over the training rows unless told."""
    steps = max(FEWEST_STEPS, min(MANY_STEPS, MANY_EPOCHS * steps_per_epoch))
    return max(USUAL_EPOCHS, math.ceil(steps / steps_per_epoch))


def weight_decay(settings: TrainingSettings, steps_per_epoch: int) -> float:
    """AdamW's weight decay."""
    if settings.weight_decay is not None:
        return settings.weight_decay
    return min(HIGHEST_DECAY, 1 / (settings.learning_rate * DECAY_EPOCHS * steps_per_epoch))


@dataclass
class Pace:
    """What of a schedule changes as it goes, and so what a snapshot keeps.

    step: steps done. most: steps in all, unless the time limit comes first. planned: steps in all, as things stand.
    seconds: taken so far. validation_seconds: of the last validation.
    """

    step: int
    most: int
    planned: int
    seconds: float = 0.0
    validation_seconds: float = 0.0


class Schedule:
    """How many steps there will be, and so where a step is.

    The plan is all epochs, until the pace shows that the time limit comes first, or until patience has run out; then
    it is shorter, and the learning rate falls to 0 by its end all the same, because most of what a network learns
    becomes visible only then. A limit that is not met leaves no trace in the weights.
    """

    STEPS_BETWEEN_LOOKS = 20
    """Steps between looks at the clock: enough to average out the first, which is slow."""

    def __init__(self, settings: TrainingSettings, steps_per_epoch: int, pace: Pace | None = None) -> None:
        """pace: where to go on; None for the beginning."""
        self._settings = settings
        self.steps_per_epoch = steps_per_epoch
        self._all_steps = (settings.epochs or usual_epochs(steps_per_epoch)) * steps_per_epoch
        self._pace = pace or Pace(step=0, most=self._all_steps, planned=self._all_steps)
        self._began = time.monotonic() - self._pace.seconds

    @property
    def step(self) -> int:
        """Steps done."""
        return self._pace.step

    @property
    def patience(self) -> int:
        """Epochs without better weights after which to wind down."""
        usual = max(FEWEST_PATIENCE, math.ceil(USUAL_PATIENCE * self._all_steps / self.steps_per_epoch))
        return self._settings.patience or usual

    @property
    def num_epochs(self) -> int:
        return math.ceil(self._pace.planned / self.steps_per_epoch)

    @property
    def stopped_by(self) -> StoppedBy | None:
        """What the plan ended by; None while it goes on."""
        if self.step < self._pace.planned:
            return None
        if self._pace.planned < self._pace.most:
            return "time"
        return "patience" if self._pace.most < self._all_steps else "epochs"

    @property
    def seconds(self) -> float:
        """Of training, without the time between a kill and the resumption."""
        return time.monotonic() - self._began

    def pace(self) -> Pace:
        """For a snapshot."""
        return Pace(**{**asdict(self._pace), "seconds": self.seconds})

    def learning_rate_share(self) -> float:
        """Share of the peak learning rate: a straight rise, then half a cosine down to 0."""
        progress = (self.step + 1) / (self._pace.planned + 1)
        warmup = self._settings.warmup_share
        if progress < warmup:
            return progress / warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))

    def crop_tokens(self, longest: int) -> int:
        """Most tokens of a row in this step, of rows with up to `longest`.

        They grow by a constant factor for each equal rise of the cubed progress: half of all steps are nearly as cheap
        as the first, and the last fifth see most of every row.
        """
        shortest = self._settings.crop_tokens
        if shortest is None or shortest >= longest:
            return longest
        progress = (self.step + 1) / self._pace.planned
        return min(longest, int(shortest * (longest / shortest) ** progress**3))

    def step_done(self) -> None:
        self._pace.step += 1
        if self.step % self.STEPS_BETWEEN_LOOKS == 0:
            self._look_at_clock()

    def validated(self, seconds: float) -> None:
        self._pace.validation_seconds = seconds
        self._look_at_clock()

    def wind_down(self) -> None:
        """End soon, the learning rate first: what is left becomes WIND_DOWN_SHARE of the steps done, or less."""
        self._pace.most = min(self._pace.most, self.step + math.ceil(WIND_DOWN_SHARE * self.step))
        self._pace.planned = min(self._pace.planned, self._pace.most)

    @property
    def is_winding_down(self) -> bool:
        return self._pace.most < self._all_steps

    def _look_at_clock(self) -> None:
        if self._settings.max_seconds is None:
            return
        elapsed = self.seconds
        # The pace has the validations so far in it; the last one is still to come.
        left = self._settings.max_seconds - elapsed - self._pace.validation_seconds
        self._pace.planned = min(self._pace.most, self.step + max(0, int(left * self.step / elapsed)))
