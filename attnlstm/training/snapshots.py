"""A training under way as bytes and back: safetensors, with everything that is no tensor as JSON in its header.

Owns the form and every check on the way in; nothing is ever unpickled. Random numbers need no state: they follow
from the seed and the step. Knows nothing about where snapshots are kept.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from attnlstm.training.optimizer import AdamW
from attnlstm.training.schedule import Pace

FORMAT = 2
"""Goes up whenever the same settings would train on differently, so that no older snapshot is gone on from."""


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


@dataclass
class EpochSums:
    """What an epoch has added up so far. seconds: of its steps."""

    loss: float = 0.0
    num_rows: int = 0
    num_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Best:
    """The best weights so far: state_dict, score (lower is better), and logits (N, C) on the validation rows."""

    weights: dict[str, Tensor]
    score: float
    logits: Tensor


@dataclass(frozen=True)
class Snapshot:
    """Where a training is, save for weights and optimizer. best: None before the first validation.

    fused: whether its gradients come from the compiled step, whose last digits are not torch's. Snapshots from before
    there was one don't say; they go on with torch.
    """

    pace: Pace
    sums: EpochSums
    reports: tuple[EpochReport, ...]
    best: Best | None
    fused: bool


def to_bytes(snapshot: Snapshot, network: nn.Module, optimizer: AdamW, digest: str) -> bytes:
    """digest: of all that must be the same for this snapshot to be gone on from."""
    groups = {
        "network": network.state_dict(),
        "best": snapshot.best.weights if snapshot.best else {},
        "validation": {"logits": snapshot.best.logits} if snapshot.best else {},
        "optimizer": optimizer.moments(),
    }
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, named in groups.items()
        for name, tensor in named.items()
    }
    state = {
        "format": FORMAT,
        "digest": digest,
        "pace": asdict(snapshot.pace),
        "sums": asdict(snapshot.sums),
        "reports": [asdict(report) for report in snapshot.reports],
        "best_score": snapshot.best.score if snapshot.best else None,
        "fused": snapshot.fused,
    }
    return safetensors.torch.save(tensors, metadata={"training": json.dumps(state)})


def restore(data: bytes, network: nn.Module, optimizer: AdamW, digest: str) -> Snapshot:
    """The snapshot, with its weights in the network and its moments in the optimizer.

    Raises ValueError if the bytes are no snapshot, or one of another training.
    """
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        state = json.loads(header["__metadata__"]["training"])
        version, digest_found = state["format"], state["digest"]
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"the snapshot ({len(data)} bytes) can't be read: {error!r}. Delete it to train from the start."
        ) from error
    if version != FORMAT or digest_found != digest:
        raise ValueError(
            "the snapshot belongs to another training: other rows, settings, network or version. "
            "Go on with what it was made with, or delete it to train from the start."
        )
    groups = _grouped(tensors)
    network.load_state_dict(groups["network"])
    optimizer.load(groups["optimizer"])
    best = None
    if state["best_score"] is not None:
        best = Best(groups["best"], state["best_score"], groups["validation"]["logits"])
    return Snapshot(
        pace=Pace(**state["pace"]),
        sums=EpochSums(**state["sums"]),
        reports=tuple(EpochReport(**report) for report in state["reports"]),
        best=best,
        fused=state.get("fused", False),
    )


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        # Copies: what is loaded shares one buffer, whose alignment is by chance.
        groups.setdefault(group, {})[rest] = tensor.clone()
    return groups
