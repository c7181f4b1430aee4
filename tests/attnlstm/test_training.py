"""Training learns, keeps the best weights, comes out the same again, and stops when it should."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attnlstm import training
from attnlstm.calibration import fit_temperature
from attnlstm.checkpoint import to_files
from attnlstm.config import ModelConfig
from attnlstm.engines import open_engine
from attnlstm.training import (
    FEWEST_STEPS,
    HIGHEST_DECAY,
    USUAL_EPOCHS,
    EpochReport,
    Labelled,
    TrainingSettings,
    _crop,
    _Plan,
    _weight_decay,
    train,
)

CONFIG = ModelConfig(num_embeddings=12, embedding_dim=5, hidden_size=7, dropout=0.1, classes=("x", "y", "z"))
QUICK = TrainingSettings(epochs=2, batch_rows=37, threads=2)


def planted(num_rows: int, seed: int) -> Labelled:
    """Rows of noise with a token, 0, 1 or 2, in up to three random places, that tells the class."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 30, num_rows)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    values = rng.integers(3, 11, offsets[-1]).astype(np.uint8)
    labels = rng.integers(0, 3, num_rows)
    values[offsets[:-1, None] + rng.integers(0, lengths[:, None], (num_rows, 3))] = labels[:, None]
    return Labelled(values, offsets, labels)


TRAIN, VALIDATION = planted(307, seed=1), planted(97, seed=2)


@pytest.mark.parametrize("attention", ["additive", "multihead"])
def test_a_planted_token_is_learned(attention: str) -> None:
    settings = TrainingSettings(learning_rate=1e-2, epochs=10, batch_rows=16, weight_decay=0.01, warmup_share=0.05)
    config = replace(CONFIG, attention=attention, dropout=0.0)
    result = train(config, settings, TRAIN, VALIDATION)
    assert result.epochs[result.best_epoch - 1].validation_accuracy > 0.95
    unseen = planted(211, seed=3)
    scores = open_engine(result.network, "cpu").score(unseen.values, unseen.offsets)
    assert (scores.probabilities.argmax(1) == unseen.labels).mean() > 0.95


def test_the_same_seed_gives_the_same_weights_on_any_number_of_threads() -> None:
    one, again, other_threads, other_seed = (
        to_files(train(CONFIG, settings, TRAIN, VALIDATION).network)
        for settings in (QUICK, QUICK, replace(QUICK, threads=1), replace(QUICK, seed=1))
    )
    assert one == again == other_threads
    assert one["model.safetensors"] != other_seed["model.safetensors"]


def test_training_leaves_torchs_own_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(CONFIG, QUICK, TRAIN, VALIDATION)
    assert torch.equal(torch.rand(3), expected)


def test_a_time_limit_that_is_not_met_changes_nothing() -> None:
    unlimited, limited = (
        to_files(train(CONFIG, replace(QUICK, max_seconds=limit), TRAIN, VALIDATION).network) for limit in (None, 1e6)
    )
    assert unlimited == limited


def test_the_best_weights_are_kept_and_patience_ends_it() -> None:
    # Labels of the validation rows are turned round, so that learning makes the loss worse.
    wrong = Labelled(VALIDATION.values, VALIDATION.offsets, (VALIDATION.labels + 1) % 3)
    reports: list[EpochReport] = []
    settings = TrainingSettings(learning_rate=1e-2, epochs=40, patience=3, batch_rows=32)
    result = train(replace(CONFIG, dropout=0.0), settings, TRAIN, wrong, reports.append)
    assert result.stopped_by == "patience"
    assert tuple(reports) == result.epochs
    losses = [report.validation_loss for report in reports]
    assert result.best_epoch == 1 + int(np.argmin(losses)) == len(reports) - 3
    assert [report.improved for report in reports] == [
        loss == best for loss, best in zip(losses, itertools.accumulate(losses, min), strict=True)
    ]
    kept = F.cross_entropy(torch.from_numpy(result.validation_logits), torch.from_numpy(wrong.labels))
    assert kept.item() == pytest.approx(min(losses))
    again = training.TorchEngine(result.network, "cpu").logits(wrong.values, wrong.offsets)
    np.testing.assert_array_equal(again, result.validation_logits)


def test_validation_logits_calibrate_the_network() -> None:
    result = train(CONFIG, QUICK, TRAIN, VALIDATION)
    temperature = fit_temperature(result.validation_logits, VALIDATION.labels)
    logits = torch.from_numpy(result.validation_logits)
    labels = torch.from_numpy(VALIDATION.labels)
    assert F.cross_entropy(logits / temperature, labels) <= F.cross_entropy(logits, labels)


def test_the_time_limit_ends_training_and_the_schedule_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that advances one second a step of training.
    clock = [0.0]
    rates: list[float] = []
    step = training._step

    def timed_step(network, optimizer, *rest):  # type: ignore[no-untyped-def]
        clock[0] += 1.0
        rates.append(optimizer.param_groups[0]["lr"])
        return step(network, optimizer, *rest)

    monkeypatch.setattr(training, "_step", timed_step)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    settings = replace(QUICK, epochs=1000, max_seconds=30.0, learning_rate=1.0, clip_norm=1e-9)
    result = train(CONFIG, settings, TRAIN, VALIDATION)
    assert result.stopped_by == "time"
    assert len(rates) == 30
    assert len(result.epochs) == 4  # 9 steps each
    assert rates[-1] < 0.01
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_the_learning_rate_rises_in_the_warm_up_and_falls_to_nothing() -> None:
    plan = training._Plan(TrainingSettings(epochs=3, warmup_share=0.25), steps_per_epoch=33, began=0.0)
    shares = []
    while not plan.is_over:
        shares.append(plan.learning_rate_share())
        plan.step_done()
    assert len(shares) == 99
    assert shares[0] == pytest.approx(0.04)
    assert shares[24] == 1.0 == max(shares)
    assert all(later > earlier for earlier, later in itertools.pairwise(shares[:25]))
    assert all(later < earlier for earlier, later in itertools.pairwise(shares[24:]))
    assert shares[-1] < 0.001


def test_a_limit_shorter_than_an_epoch_still_gives_a_network() -> None:
    result = train(CONFIG, replace(QUICK, max_seconds=1e-9, batch_rows=1), TRAIN, VALIDATION)
    assert result.stopped_by == "time"
    assert len(result.epochs) == 1
    assert result.validation_logits.shape == (97, 3)


def test_every_row_is_in_one_batch_of_like_lengths() -> None:
    lengths = TRAIN.lengths
    order = np.random.default_rng(7)
    batches = list(training._shuffled_batches(lengths, 37, order))
    assert sorted(np.concatenate(batches).tolist()) == list(range(307))
    assert {len(batch) for batch in batches} == {37, 307 % 37}
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded / lengths.sum() < 1.15
    assert not np.array_equal(batches[0], next(training._shuffled_batches(lengths, 37, order)))


def test_a_step_is_that_of_the_whole_batch_at_once() -> None:
    """Slices, threads and summing do not change the gradient of the mean loss."""
    config = replace(CONFIG, dropout=0.0)
    settings = TrainingSettings(clip_norm=1e9)
    network = training.AttentionLSTM(config)
    rows = np.arange(83)
    with training.worker_threads(2, "test") as workers:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        batch = _crop(TRAIN, rows, 1000, np.random.default_rng(0))
        loss = training._step(network, optimizer, batch, settings, 0, workers)
    found = [parameter.grad for parameter in network.parameters()]
    token_ids, lengths = training.pad(TRAIN.values, TRAIN.offsets, rows, config.padding_id)
    logits, _ = network(torch.from_numpy(token_ids), torch.from_numpy(lengths))
    expected_loss = F.cross_entropy(logits, torch.from_numpy(TRAIN.labels[:83]))
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    for one, other in zip(found, torch.autograd.grad(expected_loss, list(network.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    settings = replace(QUICK, learning_rate=1e30, warmup_share=0.0)
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 1; a learning_rate below 1e\+30 may help"):
        train(CONFIG, settings, TRAIN, VALIDATION)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(307, 3), r"train: labels must be in 0\.\.2; found 3\.\.3"),
        (np.zeros(306, int), "train: one label a row and at least one row are needed; got 307 rows and 306 labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(CONFIG, QUICK, Labelled(TRAIN.values, TRAIN.offsets, labels), VALIDATION)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "epochs must be at least 1, not 0"),
        ("learning_rate", -1.0, "learning_rate must be above 0, not -1.0"),
        ("clip_norm", float("nan"), "clip_norm must be above 0, not nan"),
        ("weight_decay", -0.5, "weight_decay must be at least 0, not -0.5"),
        ("warmup_share", 1.0, "warmup_share must be at least 0 and below 1, not 1.0"),
        ("max_seconds", 0.0, "max_seconds must be above 0 or None, not 0.0"),
        ("threads", 0, "threads must be at least 1 or None, not 0"),
    ],
)
def test_bad_settings_fail_on_construction(name: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**{name: value})  # type: ignore[arg-type]


def test_crops_grow_until_rows_are_whole() -> None:
    plan = _Plan(TrainingSettings(epochs=10, crop_tokens=64), steps_per_epoch=10, began=0.0)
    tokens = []
    for _ in range(100):
        tokens.append(plan.crop_tokens(512))
        plan.step_done()
    assert tokens == sorted(tokens)
    assert tokens[0] == 64
    assert tokens[49] < 90
    assert tokens[-1] == 512
    assert plan.crop_tokens(60) == 60


def test_a_crop_is_a_piece_of_its_row() -> None:
    labelled = Labelled(np.arange(30), np.array([0, 3, 30]), np.array([1, 0]))
    order = np.random.default_rng(0)
    pieces = [_crop(labelled, np.array([1, 0]), 5, order) for _ in range(40)]
    for piece in pieces:
        assert piece.lengths.tolist() == [5, 3]
        assert piece.labels.tolist() == [0, 1]
        assert np.diff(piece.values[:5]).tolist() == [1] * 4
        assert piece.values[5:].tolist() == [0, 1, 2]
    starts = {int(piece.values[0]) for piece in pieces}
    assert min(starts) >= 3
    assert max(starts) <= 25
    assert len(starts) > 10


def test_weights_forget_over_ten_passes_unless_rows_are_few() -> None:
    assert _weight_decay(TrainingSettings(learning_rate=0.01), steps_per_epoch=250) == pytest.approx(0.04)
    assert _weight_decay(TrainingSettings(learning_rate=0.01), steps_per_epoch=2) == HIGHEST_DECAY
    assert _weight_decay(TrainingSettings(weight_decay=0.0), steps_per_epoch=2) == 0


def test_few_rows_are_passed_over_more_often() -> None:
    assert _Plan(TrainingSettings(), steps_per_epoch=1000, began=0.0).num_epochs == USUAL_EPOCHS
    assert _Plan(TrainingSettings(), steps_per_epoch=10, began=0.0).num_epochs == FEWEST_STEPS // 10
    assert _Plan(TrainingSettings(epochs=3), steps_per_epoch=10, began=0.0).num_epochs == 3
