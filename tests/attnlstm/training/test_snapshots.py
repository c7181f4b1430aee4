"""A training that goes on from any snapshot ends with the bits of one that was never stopped."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from attnlstm.checkpoint import to_files
from attnlstm.config import ModelConfig
from attnlstm.training import loop as training
from attnlstm.training.loop import TrainingResult, train
from attnlstm.training.rows import LabelledSequences
from attnlstm.training.settings import TrainingSettings

NGRAMS = {"longest_ngram": 3, "ngram_buckets": 64, "ngram_dropout": 0.1}
CONFIG = ModelConfig(num_embeddings=12, embedding_dim=5, hidden_size=7, dropout=0.1, classes=("x", "y", "z"), **NGRAMS)
SETTINGS = TrainingSettings(epochs=3, batch_rows=37, crop_tokens=10, token_dropout=0.1, averaging=0.9, threads=2)

Undisturbed = tuple[TrainingResult, list[bytes], LabelledSequences, LabelledSequences]


@pytest.fixture(scope="module")
def undisturbed(planted: Callable[[int, int], LabelledSequences]) -> Undisturbed:
    """A training, its snapshots after every step (9 an epoch) and every epoch, and its rows."""
    snapshots: list[bytes] = []
    rows = planted(307, 1), planted(97, 2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "SNAPSHOT_SECONDS", 0.0)
        result = train(CONFIG, SETTINGS, *rows, on_snapshot=snapshots.append)
    assert len(snapshots) == 2 * (9 + 1) + (8 + 1)
    return result, snapshots, *rows


@pytest.mark.parametrize("cut", [0, 5, 8, 9, 10, 18, 27, 28])
def test_resumed_training_ends_with_the_same_bits(undisturbed: Undisturbed, cut: int) -> None:
    result, snapshots, *rows = undisturbed
    resumed = train(CONFIG, SETTINGS, *rows, resume_from=snapshots[cut])
    assert to_files(resumed.network) == to_files(result.network)
    np.testing.assert_array_equal(resumed.validation_logits, result.validation_logits)
    assert (resumed.best_epoch, resumed.stopped_by) == (result.best_epoch, result.stopped_by)
    for found, expected in zip(resumed.epochs, result.epochs, strict=True):
        same = {"seconds": 0.0, "tokens_per_second": 0.0}
        # Losses are added up in pieces that end where a snapshot was taken.
        assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-12)
        same["train_loss"] = 0.0
        assert replace(found, **same) == replace(expected, **same)


def test_threads_and_time_limit_may_differ(undisturbed: Undisturbed) -> None:
    result, snapshots, *rows = undisturbed
    settings = replace(SETTINGS, threads=1, max_seconds=1e6)
    resumed = train(CONFIG, settings, *rows, resume_from=snapshots[12])
    assert to_files(resumed.network) == to_files(result.network)


def test_a_snapshot_from_before_the_compiled_step_goes_on_with_torch(
    undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, *rows = undisturbed
    snapshots: list[bytes] = []
    with monkeypatch.context() as patched:
        patched.setattr(training, "why_not_fused", lambda network: "it was not there")
        expected = train(CONFIG, SETTINGS, *rows, on_snapshot=snapshots.append)
    tensors = safetensors.torch.load(snapshots[1])
    header = json.loads(snapshots[1][8 : 8 + int.from_bytes(snapshots[1][:8], "little")])["__metadata__"]["training"]
    state = json.loads(header)
    del state["fused"]
    old = safetensors.torch.save(tensors, metadata={"training": json.dumps(state)})
    resumed = train(CONFIG, SETTINGS, *rows, resume_from=old)
    assert to_files(resumed.network) == to_files(expected.network)


def test_a_snapshot_of_another_training_is_refused(undisturbed: Undisturbed) -> None:
    _, snapshots, *rows = undisturbed
    with pytest.raises(ValueError, match="the snapshot belongs to another training: other rows, settings, network"):
        train(CONFIG, SETTINGS, *rows, digest="another", resume_from=snapshots[3])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04K\x01.",  # a pickle
        safetensors.torch.save({"weights": torch.zeros(3)}),
        safetensors.torch.save({"weights": torch.zeros(3)}, metadata={"training": "{}"}),
    ],
)
def test_what_is_no_snapshot_is_refused(undisturbed: Undisturbed, data: bytes) -> None:
    _, _, *rows = undisturbed
    with pytest.raises(ValueError, match=r"the snapshot \(\d+ bytes\) can't be read: .*Delete it to train from"):
        train(CONFIG, SETTINGS, *rows, resume_from=data)


def test_a_torn_snapshot_is_refused(undisturbed: Undisturbed) -> None:
    _, snapshots, *rows = undisturbed
    with pytest.raises(ValueError, match="can't be read"):
        train(CONFIG, SETTINGS, *rows, resume_from=snapshots[3][:-100])
