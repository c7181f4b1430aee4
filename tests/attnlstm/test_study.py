"""A training of the study: the same budget for all, the same outcome again, and figures that are what they say."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import get_args

import numpy as np
import pytest

from attnlstm.study import Outcome, StudyRows, budget, train_variant, training_digest
from attnlstm.training.loop import Labelled
from attnlstm.training.schedule import usual_epochs
from attnlstm.variants import Variant

CLASSES = ("x", "y", "z")


@pytest.fixture(scope="module")
def rows(planted: Callable[[int, int], Labelled]) -> StudyRows:
    return StudyRows(CLASSES, planted(131, 1), planted(53, 2), planted(61, 3))


def plain(outcome: Outcome) -> str:
    return json.dumps(asdict(replace(outcome, seconds=0.0)))


@pytest.mark.parametrize("variant", get_args(Variant))
def test_every_variant_is_trained_for_all_epochs_and_comes_out_the_same_again(
    variant: Variant, rows: StudyRows
) -> None:
    settings = budget(rows, seed=5, epochs=3, threads=1)
    heard: list[int] = []
    outcome = train_variant(variant, rows, settings, lambda report: heard.append(report.epoch))
    assert heard == [1, 2, 3]
    assert (outcome.variant, outcome.seed) == (variant, 5)
    assert len(outcome.train_loss) == len(outcome.validation_loss) == len(outcome.validation_accuracy) == 3
    assert outcome.accuracy * 61 == pytest.approx(round(outcome.accuracy * 61))
    assert 0 < outcome.log_loss < 3
    assert plain(train_variant(variant, rows, replace(settings, threads=2))) == plain(outcome)
    assert Outcome(**json.loads(plain(outcome))).accuracy == outcome.accuracy


def test_no_training_is_cut_short_and_rows_are_seen_whole(rows: StudyRows) -> None:
    settings = budget(rows, seed=0, epochs=9, threads=None)
    assert (settings.epochs, settings.patience, settings.crop_tokens) == (9, 9, None)
    assert settings.max_seconds is None
    as_retrain = budget(rows, seed=0, epochs=None, threads=None)
    assert as_retrain.epochs == as_retrain.patience == usual_epochs(3)  # 131 rows are 3 steps


def test_epochs_to_a_loss_are_those_after_which_it_was_met() -> None:
    outcome = Outcome("mean", 0, 1, 0.5, 0.5, 1.0, 1, (), (0.9, 0.5, 0.7, 0.3), (), 1.0)
    assert [outcome.epochs_to(loss) for loss in (1.0, 0.9, 0.6, 0.5, 0.4, 0.2)] == [1, 1, 2, 2, 4, None]


def test_the_digest_changes_with_all_that_an_outcome_follows_from(rows: StudyRows) -> None:
    settings = budget(rows, seed=0, epochs=3, threads=1)
    labels = rows.test.labels.copy()
    labels[0] = (labels[0] + 1) % 3
    relabelled = replace(rows, test=replace(rows.test, labels=labels))
    different = [
        training_digest("mean", rows, settings),
        training_digest("additive", rows, settings),
        training_digest("last_state", rows, settings),
        training_digest("mean", rows, replace(settings, seed=1)),
        training_digest("mean", relabelled, settings),
        training_digest("mean", replace(rows, classes=("x", "y", "w")), settings),
    ]
    assert len(set(different)) == len(different)
    assert training_digest("mean", rows, replace(settings, threads=2)) == different[0]


def test_thinned_rows_are_some_of_the_rows_in_the_same_shares(rows: StudyRows) -> None:
    some = rows.thinned(100)
    assert [len(side) for side in (some.train, some.validation, some.test)] == [53, 22, 25]
    whole = {tuple(tokens) for tokens in np.split(rows.train.values, rows.train.offsets[1:-1])}
    kept = [tuple(tokens) for tokens in np.split(some.train.values, some.train.offsets[1:-1])]
    assert set(kept) <= whole
    assert some.train.digest() == rows.thinned(100).train.digest()
    assert rows.thinned(1000) is rows
    assert len(rows.thinned(1).test) == 1


def test_the_loss_of_knowing_shares_only_is_that_of_the_train_rows_shares() -> None:
    def labelled(labels: list[int]) -> Labelled:
        return Labelled(np.zeros(len(labels), np.uint8), np.arange(len(labels) + 1), np.array(labels))

    rows = StudyRows(("a", "b", "c"), labelled([0, 0, 0, 1]), labelled([0, 1, 2]), labelled([0]))
    expected = -(math.log(3 / 5) + math.log(1 / 5) + math.log(1 / 5)) / 3  # c counts as if it had a row
    assert rows.shares_loss() == pytest.approx(expected)
