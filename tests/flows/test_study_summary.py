"""What is made of a study's outcomes: figures, findings and the verdict, on outcomes made by hand."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from attnlstm.study import Outcome
from attnlstm.variants import VARIANTS, Variant
from flows.study_picture import draw_curves
from flows.study_report import NAMES, markdown, verdict
from flows.study_summary import SetFigures, summarise

ACCURACY: dict[Variant, list[float]] = {
    "last_state": [0.60, 0.61, 0.62],
    "mean": [0.70, 0.66, 0.69],
    "additive": [0.70, 0.72, 0.71],
    "multihead": [0.62, 0.62, 0.65],
    "multihead_published": [0.49, 0.50, 0.48],
}
LOSSES: dict[Variant, list[float]] = {
    "last_state": [1.0, 0.9, 0.8, 0.8, 0.7, 0.7],
    "mean": [0.9, 0.5, 0.35, 0.3, 0.3, 0.3],
    "additive": [0.8, 0.35, 0.3, 0.2, 0.1, 0.0],
    "multihead": [0.9, 0.8, 0.35, 0.3, 0.2, 0.1],
    "multihead_published": [1.0, 1.0, 0.9, 0.9, 0.9, 0.9],
}


def outcomes(accuracy: dict[Variant, list[float]] = ACCURACY) -> list[Outcome]:
    """In no order; of seed 2 multihead is an epoch later."""
    made = [
        Outcome(
            variant=variant,
            seed=seed,
            num_parameters=12_345,
            accuracy=accuracy[variant][seed],
            macro_f1=0.5,
            log_loss=0.5,
            best_epoch=6,
            train_loss=(),
            validation_loss=_later(LOSSES[variant], seed == 2 and variant == "multihead"),
            validation_accuracy=(),
            seconds=1.0,
        )
        for seed in range(3)
        for variant in VARIANTS
    ]
    random.Random(7).shuffle(made)
    return made


def _later(losses: Sequence[float], is_later: bool) -> list[float]:
    return [*losses[:1], *losses[:-1]] if is_later else list(losses)


@pytest.fixture
def figures() -> SetFigures:
    return summarise("hand-made", outcomes(), shares_loss=2.0)


def test_the_loss_to_reach_is_on_the_way_from_the_shares_to_the_best_and_unreached_counts_as_one_more(
    figures: SetFigures,
) -> None:
    assert figures.loss == pytest.approx(0.4)
    found = {each.variant: each for each in figures.variants}
    assert [(found[name].epochs.mean, found[name].num_unreached) for name in VARIANTS] == [
        (7, 3),
        (3, 0),
        (2, 0),
        (pytest.approx(10 / 3), 0),
        (7, 3),
    ]
    assert found["mean"].accuracy.mean == pytest.approx(statistics.fmean(ACCURACY["mean"]))
    assert found["mean"].accuracy.deviation == pytest.approx(statistics.stdev(ACCURACY["mean"]))
    assert (figures.num_seeds, figures.num_epochs) == (3, 6)


def test_differences_are_paired_by_seed_and_have_students_interval(figures: SetFigures) -> None:
    against_mean = next(each for each in figures.lifts if (each.variant, each.against) == ("additive", "mean"))
    differences = [0.0, 0.06, 0.02]
    # 4.3027: the 97.5% point of Student's t with two degrees of freedom, from a printed table
    half = 4.3027 * statistics.stdev(differences) / math.sqrt(3)
    mean = statistics.fmean(differences)
    assert against_mean.mean == pytest.approx(mean)
    assert (against_mean.low, against_mean.high) == (
        pytest.approx(mean - half, abs=1e-5),
        pytest.approx(mean + half, abs=1e-5),
    )


def test_findings_follow_from_the_mean_and_its_interval(figures: SetFigures) -> None:
    lifts = {(each.variant, each.against): each.finding for each in figures.lifts}
    assert lifts == {
        ("additive", "last_state"): "a lot",
        ("additive", "mean"): "not beyond chance",
        ("multihead", "last_state"): "not beyond chance",
        ("multihead", "mean"): "not beyond chance",
    }
    ours, published = figures.slowdowns
    assert (ours.variant, ours.finding) == ("multihead", "a little")
    assert ours.mean == pytest.approx((1.5 * 1.5 * 2) ** (1 / 3))
    assert (published.variant, published.finding, published.mean) == ("multihead_published", "a lot", 3.5)
    worse = {**ACCURACY, "multihead": [0.50, 0.47, 0.49]}
    findings = [each.finding for each in summarise("worse", outcomes(worse), 2.0).lifts]
    assert findings[2:] == ["the other way round", "the other way round"]


@pytest.mark.parametrize(("num_others_late", "finding"), [(0, "a lot"), (1, "a lot"), (2, "not beyond chance")])
def test_what_never_gets_there_is_far_slower_only_than_what_mostly_does(num_others_late: int, finding: str) -> None:
    # The others need all six epochs, which is no half of the seven that stand for never.
    late = {seed: [1.0] * 6 if seed < num_others_late else [*[1.0] * 5, 0.0] for seed in range(3)}
    found = [
        replace(outcome, validation_loss=late[outcome.seed]) if outcome.variant == "additive" else outcome
        for outcome in outcomes()
    ]
    assert summarise("late", found, shares_loss=2.0).slowdowns[1].finding == finding


def test_the_verdict_counts_findings_and_says_yes_only_if_all_agree(figures: SetFigures) -> None:
    lifts, slowdowns = verdict([figures, figures]).values()
    assert lifts == (
        "True in part. Of 8 comparisons of an attention with a pooling without: 2 a lot, 6 nothing beyond chance. "
        "A lot is 5 points or more."
    )
    assert slowdowns == (
        "As published, true here; with attention over time, as it was meant, not true here. Against additive "
        "attention, of 2 sets: as published 2 far slower; over time 2 slower. Far slower is 2 times the epochs to the "
        "loss or more, or never to reach it where most trainings with additive attention do. Of 6 trainings each, "
        "these never reached it: 6 last state, 0 mean, 0 additive, 0 multihead, 6 multihead as published."
    )
    far = {**ACCURACY, "additive": [0.9, 0.91, 0.92], "multihead": [0.8, 0.81, 0.82]}
    assert verdict([summarise("far", outcomes(far), 2.0)])["Attention lifts the accuracy of an LSTM a lot"].startswith(
        "True here. Of 4 comparisons of an attention with a pooling without: 4 a lot."
    )


def test_the_tables_hold_mean_spread_and_interval(figures: SetFigures) -> None:
    text = markdown([figures], {"hand-made": "so many rows"}, "study.svg")
    assert "| last state | 12,345 | 61.0 ± 1.0 |" in text
    assert "| last state | 7.0 ± 0.0 (3 never) |" in text
    assert "| additive against last state | +10.0 (+7.5 to +12.5): a lot |" in text
    assert "| multihead as published against additive | 3.50 (3.50 to 3.50): far slower |" in text
    assert "![Validation loss by epoch: mean and range over 3 seeds](study.svg)" in text
    assert "hand-made 0.400" in text
    assert "- hand-made: so many rows" in text


def test_the_picture_names_every_set_and_pooling_and_is_the_same_again(figures: SetFigures, tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        draw_curves([figures], {"hand-made": outcomes()}, NAMES, tmp_path / name)
    picture = (tmp_path / "one.svg").read_text()
    assert picture == (tmp_path / "two.svg").read_text()
    for text in ("hand-made", "validation loss (nats)", "the loss to reach", *NAMES.values()):
        assert f">{text}</text>" in picture
    assert "<image" not in picture
    assert "@font-face" not in picture
