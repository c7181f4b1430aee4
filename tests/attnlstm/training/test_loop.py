"""Training learns, keeps the best weights, comes out the same again, and stops when it should."""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attnlstm.checkpoint import to_files
from attnlstm.config import ModelConfig
from attnlstm.engines import open_engine
from attnlstm.engines.fused_cpu import FusedCpuEngine
from attnlstm.engines.torch_engine import TorchEngine
from attnlstm.network import AttentionLSTM
from attnlstm.training.loop import train, warm_started
from attnlstm.training.rows import LabelledSequences, crop
from attnlstm.training.settings import TrainingSettings
from attnlstm.training.snapshots import EpochReport
from attnlstm.training.step import Stepper

CONFIG = ModelConfig(num_embeddings=12, embedding_dim=5, hidden_size=7, dropout=0.1, classes=("x", "y", "z"))
QUICK = TrainingSettings(epochs=2, batch_rows=37, threads=2)


@pytest.fixture(scope="module")
def rows(planted: Callable[[int, int], LabelledSequences]) -> LabelledSequences:
    """To train on."""
    return planted(307, 1)


@pytest.fixture(scope="module")
def held_out(planted: Callable[[int, int], LabelledSequences]) -> LabelledSequences:
    """To validate on."""
    return planted(97, 2)


@pytest.mark.parametrize("attention", ["additive", "multihead"])
def test_a_planted_token_is_learned(
    attention: str,
    rows: LabelledSequences,
    held_out: LabelledSequences,
    planted: Callable[[int, int], LabelledSequences],
) -> None:
    settings = TrainingSettings(learning_rate=1e-2, epochs=10, batch_rows=16, weight_decay=0.01, warmup_share=0.05)
    config = replace(CONFIG, attention=attention, dropout=0.0)
    result = train(config, settings, rows, held_out)
    assert result.epochs[result.best_epoch - 1].validation_accuracy > 0.95
    unseen = planted(211, 3)
    scores = open_engine(result.network, "cpu").score(unseen.values, unseen.offsets)
    assert (scores.probabilities.argmax(1) == unseen.labels).mean() > 0.95


def test_the_same_seed_gives_the_same_weights_on_any_number_of_threads(
    rows: LabelledSequences, held_out: LabelledSequences
) -> None:
    one, again, other_threads, other_seed = (
        to_files(train(CONFIG, settings, rows, held_out).network)
        for settings in (QUICK, QUICK, replace(QUICK, threads=1), replace(QUICK, seed=1))
    )
    assert one == again == other_threads
    assert one["model.safetensors"] != other_seed["model.safetensors"]


def test_training_leaves_torchs_own_random_numbers_alone(rows: LabelledSequences, held_out: LabelledSequences) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(CONFIG, QUICK, rows, held_out)
    assert torch.equal(torch.rand(3), expected)


def test_the_best_weights_are_kept_and_patience_ends_it(rows: LabelledSequences, held_out: LabelledSequences) -> None:
    # Labels of the validation rows are turned round, so that learning makes the loss worse.
    wrong = LabelledSequences(held_out.values, held_out.offsets, (held_out.labels + 1) % 3)
    reports: list[EpochReport] = []
    settings = TrainingSettings(learning_rate=1e-2, epochs=40, patience=8, batch_rows=32)
    result = train(replace(CONFIG, dropout=0.0), settings, rows, wrong, reports.append)
    assert result.stopped_by == "patience"
    assert tuple(reports) == result.epochs
    losses = [report.calibrated_loss for report in reports]
    assert [report.improved for report in reports] == [
        loss == best and loss not in losses[:i]
        for i, (loss, best) in enumerate(zip(losses, itertools.accumulate(losses, min), strict=True))
    ]
    assert result.best_epoch == 1 + int(np.argmin(losses))
    # Patience ran out so many epochs after the best, and the learning rate took a quarter of that to fall.
    told = next(report.epoch for report in reports if report.num_epochs < 40)
    best_then = max(report.epoch for report in reports[:told] if report.improved)
    assert told == best_then + 8
    assert len(reports) == math.ceil(told * 1.25)
    kept = F.cross_entropy(torch.from_numpy(result.validation_logits), torch.from_numpy(wrong.labels))
    assert kept.item() == pytest.approx(reports[result.best_epoch - 1].validation_loss)
    again = FusedCpuEngine(result.network).logits(wrong.values, wrong.offsets)
    np.testing.assert_array_equal(again, result.validation_logits)


def test_biases_and_temperature_calibrate_on_the_validation_rows(
    rows: LabelledSequences, held_out: LabelledSequences
) -> None:
    result = train(CONFIG, QUICK, rows, held_out)
    labels = torch.from_numpy(held_out.labels)
    assert result.temperature != 1
    assert np.abs(result.biases).max() > 0
    calibrated = result.calibrated()
    logits = FusedCpuEngine(calibrated).logits(held_out.values, held_out.offsets)
    np.testing.assert_allclose(logits, result.validation_logits + result.biases, atol=1e-5)
    losses = [
        F.cross_entropy(torch.from_numpy(each), labels)
        for each in (result.validation_logits, logits, logits / calibrated.config.temperature)
    ]
    assert losses[2] < losses[0]
    assert losses[2] <= losses[1]


def test_the_say_that_rare_classes_were_given_is_not_taken_back(
    rows: LabelledSequences, held_out: LabelledSequences
) -> None:
    assert not train(CONFIG, replace(QUICK, class_weights="balanced"), rows, held_out).biases.any()


def test_a_row_that_is_there_often_does_not_decide_the_temperature_alone(
    rows: LabelledSequences, held_out: LabelledSequences
) -> None:
    # Some rows that no biases make right, so that there is something to calibrate.
    some_wrong = (held_out.labels + (np.arange(len(held_out)) % 5 == 0)) % CONFIG.num_classes

    def temperature(copies: int) -> float:
        indices = np.append(np.arange(len(held_out)), np.zeros(copies, np.int64))
        validation = crop(
            replace(held_out, labels=some_wrong), indices, int(held_out.lengths.max()), np.random.default_rng(1)
        )
        return train(CONFIG, QUICK, rows, validation).temperature

    assert temperature(1000) == pytest.approx(temperature(100), rel=0.02)
    assert temperature(1000) != pytest.approx(temperature(0), rel=0.02)


def test_the_time_limit_ends_training_and_the_schedule_with_it(
    monkeypatch: pytest.MonkeyPatch, rows: LabelledSequences, held_out: LabelledSequences
) -> None:
    # A clock that advances one second a step of training.
    clock = [0.0]
    rates: list[float] = []
    take = Stepper.take

    def timed_take(self: Stepper, batch: LabelledSequences, step: int, learning_rate: float) -> torch.Tensor:
        clock[0] += 1.0
        rates.append(learning_rate)
        return take(self, batch, step, learning_rate)

    monkeypatch.setattr(Stepper, "take", timed_take)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    settings = replace(QUICK, epochs=1000, max_seconds=30.0, learning_rate=1.0, clip_norm=1e-9)
    result = train(CONFIG, settings, rows, held_out)
    assert result.stopped_by == "time"
    assert len(rates) == 30
    assert len(result.epochs) == 4  # 9 steps each
    assert rates[-1] < 0.01
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_a_limit_shorter_than_an_epoch_still_gives_a_network(
    rows: LabelledSequences, held_out: LabelledSequences
) -> None:
    result = train(CONFIG, replace(QUICK, max_seconds=1e-9, batch_rows=1), rows, held_out)
    assert result.stopped_by == "time"
    assert len(result.epochs) == 1
    assert result.validation_logits.shape == (97, 3)


def test_a_loss_that_is_not_finite_is_an_error(rows: LabelledSequences, held_out: LabelledSequences) -> None:
    settings = replace(QUICK, learning_rate=1e30, warmup_share=0.0)
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 1; a learning_rate below 1e\+30 may help"):
        train(CONFIG, settings, rows, held_out)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(307, 3), r"train: labels must be in 0\.\.2; found 3\.\.3"),
        (np.zeros(306, int), "train: one label a row and at least one row are needed; got 307 rows and 306 labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    labels: np.ndarray, message: str, rows: LabelledSequences, held_out: LabelledSequences
) -> None:
    with pytest.raises(ValueError, match=message):
        train(CONFIG, QUICK, LabelledSequences(rows.values, rows.offsets, labels), held_out)


def test_a_warm_start_goes_on_from_a_copy(rows: LabelledSequences, held_out: LabelledSequences) -> None:
    champion = train(CONFIG, replace(QUICK, epochs=8), rows, held_out).network
    champion.config = replace(CONFIG, temperature=2.0)
    before = to_files(champion)
    again = train(CONFIG, replace(QUICK, epochs=1, learning_rate=1e-9), rows, held_out, network=champion)
    assert to_files(champion) == before
    assert again.network.config.temperature == 1.0
    for name, tensor in again.network.state_dict().items():
        torch.testing.assert_close(tensor, champion.state_dict()[name], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"the network to go on from has hidden_size [0-9]+, not [0-9]+"):
        train(replace(CONFIG, hidden_size=8), QUICK, rows, held_out, network=champion)


OLD = ModelConfig(classes=("a", "b", "c"), embedding_dim=3, hidden_size=5, temperature=1.9)


@pytest.fixture
def old() -> AttentionLSTM:
    torch.manual_seed(11)
    return AttentionLSTM(OLD).eval()


def logits(network: AttentionLSTM) -> dict[str, list[float]]:
    """The logits of two rows, by name of class."""
    values, offsets = np.array([7, 8, 9, 250, 3]), np.array([0, 3, 5])
    found = TorchEngine(network.eval(), "cpu", 1).logits(values, offsets)
    return dict(zip(network.config.classes, found.T.tolist(), strict=True))


def test_classes_keep_their_outputs_by_name_and_a_new_one_starts_afresh(old: AttentionLSTM) -> None:
    config = ModelConfig(classes=("new", "c", "a"), embedding_dim=3, hidden_size=5)
    found, before = logits(warm_started(old, config, seed=1)), logits(old)
    assert found["a"] == pytest.approx(before["a"])
    assert found["c"] == pytest.approx(before["c"])
    assert found["new"] == logits(warm_started(old, config, seed=1))["new"]
    assert found["new"] != logits(warm_started(old, config, seed=2))["new"]


def test_no_class_in_common_keeps_all_but_the_outputs(old: AttentionLSTM) -> None:
    network = warm_started(old, ModelConfig(classes=("x", "y"), embedding_dim=3, hidden_size=5), seed=1)
    assert torch.equal(network.embedding.weight, old.embedding.weight)
    assert network.mlp[2].weight.shape == (2, 5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hidden_size": 6}, "it has hidden_size 5, not 6"),
        ({"embedding_dim": 4, "num_layers": 1}, "it has embedding_dim 3, not 4; num_layers 2, not 1"),
        ({"num_embeddings": 300}, "it has num_embeddings 257, not 300"),
        ({"attention": "multihead"}, "it has attention additive, not multihead"),
    ],
)
def test_other_sizes_are_refused_by_name(change: dict[str, object], text: str, old: AttentionLSTM) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        warm_started(old, replace(OLD, **change), seed=1)  # type: ignore[arg-type]


def test_a_network_of_ones_own_is_trained_unused_parameters_and_all(
    rows: LabelledSequences, held_out: LabelledSequences
) -> None:
    class MeanPooling(AttentionLSTM):
        def forward(
            self, token_ids: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            mask = torch.arange(token_ids.shape[1]) < lengths[:, None]
            weights = mask / lengths[:, None]
            states = self._hidden_states(self.embedding(token_ids), lengths, generator)
            return self.mlp((weights.unsqueeze(1) @ states).squeeze(1)), weights

    network = MeanPooling(CONFIG)
    result = train(CONFIG, QUICK, rows, held_out, network=network)
    assert type(result.network) is MeanPooling
    assert not torch.equal(result.network.embedding.weight, network.embedding.weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_cuda_device_trains_too(precision: str, rows: LabelledSequences, held_out: LabelledSequences) -> None:
    snapshots: list[bytes] = []
    settings = replace(QUICK, epochs=10, batch_rows=16, device="cuda", precision=precision)  # type: ignore[arg-type]
    result = train(replace(CONFIG, dropout=0.0), settings, rows, held_out, on_snapshot=snapshots.append)
    assert result.epochs[-1].validation_accuracy > 0.9
    assert next(result.network.parameters()).device.type == "cpu"
    resumed = train(replace(CONFIG, dropout=0.0), settings, rows, held_out, resume_from=snapshots[4])
    assert len(resumed.epochs) == 10
