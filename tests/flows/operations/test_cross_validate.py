"""Few held-out rows: cross-validation decides, and the card and its page say how little the rows show."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attnlstm.evaluation.chance import FEWEST_ROWS
from builders import StoppedError
from flows.cli.checkpoints import card_facts
from flows.operations.promote import Promotion, decide_promotion
from flows.operations.train import Listener, TrainingRequest, train_checkpoint
from flows.pages.report import report_retraining
from storage.labelled.source import LabelledSource
from storage.registry.checkpoints import Registry, StoredCheckpoint

NUM_ROWS = 90


@pytest.fixture
def labelled(tmp_path: Path) -> LabelledSource:
    """Rows whose tokens tell their label, of which few are test rows."""
    rng = np.random.default_rng(71)
    labels = rng.integers(0, 2, NUM_ROWS)
    tokens = [rng.integers(50 + 40 * label, 80 + 40 * label, 9).astype(np.uint8).tobytes() for label in labels]
    pq.write_table(pa.table({"tokens": tokens, "label": [f"c{label}" for label in labels]}), tmp_path / "few.parquet")
    return LabelledSource(str(tmp_path / "few.parquet"))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(str(tmp_path / "registry"))


def train(labelled: LabelledSource, registry: Registry, **overrides: Any) -> StoredCheckpoint:
    overrides = {"epochs": 40, "threads": 1, **overrides}
    request = TrainingRequest(labelled=labelled, preset="reference", overrides=overrides)
    return train_checkpoint(request, registry, Listener())


def with_recipe(stored: StoredCheckpoint, registry: Registry, **settings: Any) -> StoredCheckpoint:
    """The card says of the checkpoint that it was trained with other settings."""
    training = stored.card.training
    assert training is not None
    changed = replace(training, settings=training.settings | settings)
    registry.annotate(stored.version, training=changed)
    return registry.load(stored.version)


def decide(labelled: LabelledSource, registry: Registry, stored: StoredCheckpoint, **listener: Any) -> Promotion:
    return decide_promotion(labelled, registry, stored.version, listener=Listener(**listener))


def test_recipe_decides_on_all_rows_and_not_the_few_that_are_held_out(
    labelled: LabelledSource, registry: Registry
) -> None:
    stored = train(labelled, registry)
    test = stored.card.test
    assert test is not None
    assert test.num_rows < FEWEST_ROWS

    poor = decide(labelled, registry, with_recipe(stored, registry, learning_rate=1e-7))
    good = decide(labelled, registry, with_recipe(stored, registry, learning_rate=1e-2))

    assert poor.outcome == "rejected"
    assert poor.why.startswith(
        "its cross-validated accuracy is not shown to beat naming the commonest class; the first"
    )
    assert poor.why.count("the first checkpoint, ") == 1
    assert f"; test accuracy {test.accuracy:.4f}" in poor.why
    assert good.promoted
    assert good.judgement is not None
    assert (good.judgement.num_folds, good.judgement.num_rows) == (5, NUM_ROWS)
    assert registry.card(stored.version).judgement == good.judgement
    assert f"{NUM_ROWS} rows in 5 folds)" in good.why


def test_card_and_page_say_how_little_few_rows_show(labelled: LabelledSource, registry: Registry) -> None:
    stored = train(labelled, registry, epochs=1)
    test = stored.card.test
    assert test is not None
    assert test.accuracy_interval is not None
    low, high = test.accuracy_interval
    assert high - low > 0.3
    words = f"few, accuracy {low:.2f} to {high:.2f} with 90% confidence"
    assert f"{test.num_rows} rows show so much: {words}." in Path(stored.location.path, "README.md").read_text()
    assert card_facts(stored.card)["test"].endswith(f"on {test.num_rows} rows: {words}")
    record = {"outcome": "promoted", "why": "", "version": "", **dict.fromkeys(("run_name", "started", "ended"), "")}
    checks = [check.text for check in report_retraining(record, stored.card).checks]
    assert f"{test.num_rows} test rows: {words}" in checks


def test_challenger_is_held_against_the_champions_recipe_on_the_same_folds(
    labelled: LabelledSource, registry: Registry
) -> None:
    champion = train(labelled, registry)
    registry.promote(champion.version, "a test")
    trained: list[str] = []
    # Of the champion's recipe but for a limit that is not met.
    like_it = with_recipe(train(labelled, registry, seed=1), registry, seed=0, max_seconds=1e6)
    assert decide(labelled, registry, like_it, on_note=trained.append).promoted
    assert len([note for note in trained if note.startswith("fold")]) == 10

    stored = with_recipe(train(labelled, registry, seed=5), registry, learning_rate=1e-7)
    worse = decide(labelled, registry, stored)

    assert worse.outcome == "rejected"
    assert worse.why.startswith("its cross-validated accuracy is worse than the champion's; it names these classes")
    assert "its cross-validated accuracy is not shown to beat naming the commonest class" in worse.why


def test_checkpoint_of_unknown_recipe_is_judged_by_the_rows_that_there_are(
    labelled: LabelledSource, registry: Registry
) -> None:
    stored = train(labelled, registry)
    registry.annotate(stored.version, training=None)
    notes: list[str] = []
    promotion = decide(labelled, registry, stored, on_note=notes.append)
    assert notes[-1] == "cross-validation is not possible: the test rows decide, however little they show"
    assert promotion.judgement is not None
    assert promotion.judgement.num_folds is None


def test_cross_validation_that_was_stopped_goes_on_and_what_is_done_is_not_trained_again(
    labelled: LabelledSource, registry: Registry, tmp_path: Path
) -> None:
    epochs: list[int] = []

    def stop_after(number: int) -> Callable[[Any], None]:
        def stop(report: Any) -> None:
            epochs.append(report.epoch)
            if len(epochs) == number:
                raise StoppedError

        return stop

    stored = train(labelled, registry)
    undisturbed = Registry.open(str(tmp_path / "undisturbed"))
    expected = decide(labelled, undisturbed, train(labelled, undisturbed)).judgement
    with pytest.raises(StoppedError):
        decide(labelled, registry, stored, on_epoch=stop_after(100))

    promotion = decide(labelled, registry, stored, on_epoch=stop_after(-1))

    assert len(epochs) < 5 * 40 + 40
    assert promotion.judgement is not None
    assert expected is not None
    assert promotion.judgement.challenger == expected.challenger
    epochs.clear()
    Path(registry.root.path, "aliases", "champion.json").unlink()
    assert decide(labelled, registry, stored, on_epoch=stop_after(1)).promoted
    assert epochs == []
