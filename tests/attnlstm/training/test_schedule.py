"""The learning rate rises and falls, crops grow, and a limit shortens the plan without a trace if it is not met."""

import itertools
import time

import pytest

from attnlstm.training.schedule import (
    FEWEST_STEPS,
    HIGHEST_DECAY,
    MANY_EPOCHS,
    MANY_STEPS,
    USUAL_EPOCHS,
    Schedule,
    usual_epochs,
    weight_decay,
)
from attnlstm.training.settings import TrainingSettings


def test_the_learning_rate_rises_in_the_warm_up_and_falls_to_nothing() -> None:
    schedule = Schedule(TrainingSettings(epochs=3, warmup_share=0.25), steps_per_epoch=33)
    shares = []
    while schedule.stopped_by is None:
        shares.append(schedule.learning_rate_share())
        schedule.step_done()
    assert len(shares) == 99
    assert shares[0] == pytest.approx(0.04)
    assert shares[24] == 1.0 == max(shares)
    assert all(later > earlier for earlier, later in itertools.pairwise(shares[:25]))
    assert all(later < earlier for earlier, later in itertools.pairwise(shares[24:]))
    assert shares[-1] < 0.001


def test_crops_grow_until_rows_are_whole() -> None:
    schedule = Schedule(TrainingSettings(epochs=10, crop_tokens=64), steps_per_epoch=10)
    tokens = []
    for _ in range(100):
        tokens.append(schedule.crop_tokens(512))
        schedule.step_done()
    assert tokens == sorted(tokens)
    assert tokens[0] == 64
    assert tokens[49] < 90
    assert tokens[-1] == 512
    assert schedule.crop_tokens(60) == 60


def test_weights_forget_over_ten_passes_unless_rows_are_few() -> None:
    assert weight_decay(TrainingSettings(learning_rate=0.01), steps_per_epoch=250) == pytest.approx(0.04)
    assert weight_decay(TrainingSettings(learning_rate=0.01), steps_per_epoch=2) == HIGHEST_DECAY
    assert weight_decay(TrainingSettings(weight_decay=0.0), steps_per_epoch=2) == 0


def test_few_rows_are_passed_over_more_often() -> None:
    assert usual_epochs(1000) == USUAL_EPOCHS
    assert usual_epochs(200) == MANY_STEPS // 200
    assert usual_epochs(50) == MANY_EPOCHS
    assert usual_epochs(10) == FEWEST_STEPS // 10
    assert Schedule(TrainingSettings(epochs=3), steps_per_epoch=10).num_epochs == 3


def test_winding_down_lets_the_learning_rate_fall_in_a_quarter_of_the_steps_done() -> None:
    schedule = Schedule(TrainingSettings(epochs=100, crop_tokens=64), steps_per_epoch=10)
    for _ in range(400):
        schedule.step_done()
    rate, crop = schedule.learning_rate_share(), schedule.crop_tokens(512)
    schedule.wind_down()
    shares, crops = [], []
    while schedule.stopped_by is None:
        schedule.validated(0.0)
        shares.append(schedule.learning_rate_share())
        crops.append(schedule.crop_tokens(512))
        schedule.step_done()
    assert schedule.stopped_by == "patience"
    assert len(shares) == 100
    assert rate > shares[0] == max(shares)
    assert shares[-1] < 0.001
    assert crop < crops[0] < crops[-1] == 512


def test_winding_down_never_makes_it_longer() -> None:
    schedule = Schedule(TrainingSettings(epochs=10), steps_per_epoch=10)
    for _ in range(90):
        schedule.step_done()
    schedule.wind_down()
    assert (schedule.num_epochs, schedule.is_winding_down) == (10, False)


@pytest.mark.parametrize(("epochs", "patience"), [(1, 3), (12, 4), (47, 16)])
def test_patience_is_a_third_of_all_epochs(epochs: int, patience: int) -> None:
    assert Schedule(TrainingSettings(epochs=epochs), steps_per_epoch=7).patience == patience
    assert Schedule(TrainingSettings(epochs=epochs, patience=2), steps_per_epoch=7).patience == 2


def test_a_schedule_goes_on_from_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    settings = TrainingSettings(epochs=10, max_seconds=60.0)
    schedule = Schedule(settings, steps_per_epoch=10)
    for _ in range(40):
        clock[0] += 1.0
        schedule.step_done()
    pace, share = schedule.pace(), schedule.learning_rate_share()
    clock[0] += 1000.0  # between a kill and the resumption
    resumed = Schedule(settings, 10, pace)
    assert (resumed.step, resumed.num_epochs, resumed.seconds) == (40, 6, 40.0)
    assert resumed.learning_rate_share() == share
    for _ in range(20):
        clock[0] += 1.0
        resumed.step_done()
    assert resumed.stopped_by == "time"
