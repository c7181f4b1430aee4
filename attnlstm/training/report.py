"""What training tells: a report for each epoch, and the result.

Owns the fields and their meaning. Knows nothing about how they come about.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attnlstm.network import AttentionLSTM
from attnlstm.training.schedule import StoppedBy


@dataclass(frozen=True)
class EpochReport:
    """One pass over the training rows and the validation after it.

    epoch: from 1. num_epochs: planned now; a time limit lowers it, and so does patience. seconds: of training so far,
    without the time between a kill and the resumption.
    train_loss: mean over the pass, as the weights, the crops and the class weights were then.
    validation_loss, validation_accuracy, validation_macro_f1: after the pass.
    calibrated_loss: the validation loss that the best temperature leaves, where rows that are the same count once.
    tokens_per_second: of the pass, padding not counted.
    improved: the best weights so far, so the ones kept.
    """

    epoch: int
    num_epochs: int
    seconds: float
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    validation_macro_f1: float
    calibrated_loss: float
    tokens_per_second: float
    improved: bool


@dataclass(frozen=True)
class TrainingResult:
    """The network with the best weights, in evaluation mode, on the CPU, and how they came about.

    epochs: one report each. best_epoch: whose weights were kept. seconds: of all of it.
    stopped_by: "epochs" (all done), "patience" or "time".
    validation_logits: float32 (N, C) of the kept weights on the validation rows. temperature: the one to
    calibrate the network with by these rows; its own is as it was.
    """

    network: AttentionLSTM
    epochs: tuple[EpochReport, ...]
    best_epoch: int
    seconds: float
    stopped_by: StoppedBy
    validation_logits: npt.NDArray[np.float32]
    temperature: float
