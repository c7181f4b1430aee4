"""A card comes back as it was written, old and newer ones are read, and damage is told by field."""

import json
from dataclasses import fields
from typing import Any

import pytest

from storage.registry.cards import FORMAT_VERSION, Card, Sample, card_from_json, card_to_json

OF_CLASS = {"precision": 1.0, "recall": 0.5, "f1": 0.67, "num_rows": 2}


def first_card() -> dict[str, Any]:
    """A card as the first version wrote it: without a format version, and without all that came later."""
    return {
        "version": "v1",
        "test": {
            "num_rows": 3,
            "accuracy": 0.75,
            "macro_f1": 0.5,
            "majority_accuracy": 0.25,
            "log_loss": 1,
            "ece": 0.125,
            "per_class": {"a": OF_CLASS},
            "confusion": [[1, 2], [3, 4]],
        },
        "training": {
            "settings": {"seed": 1, "max_seconds": None},
            "stopped_by": "epochs",
            "best_epoch": 2,
            "seconds": 1.5,
            "epochs": [{"epoch": 1}, {"epoch": 2}],
        },
        "data": {
            "source": "data",
            "tokens_column": "tokens",
            "label_column": "label",
            "group_column": "group",
            "num_files": 1,
            "num_unlabelled": 0,
            "num_unusable": 0,
            "split_by": "group",
            "rows": {"train": 9},
            "rows_per_class": {"a": 9},
        },
        "versions": {"torch": "2.13.0"},
        "machine": "x86_64 Linux",
        "digest": "d",
    }


def read(record: object) -> Card:
    return card_from_json(json.dumps(record).encode())


def test_card_of_the_first_version_is_read_with_defaults_for_what_came_later() -> None:
    card = read(first_card())

    assert card.test is not None
    assert (card.test.accuracy, card.test.auroc, card.test.per_class["a"].recall) == (0.75, None, 0.5)
    assert card.test.confusion == ((1, 2), (3, 4))
    assert card.training is not None
    assert (card.training.started_from, card.training.epochs[1]) == ("scratch", {"epoch": 2})
    assert card.data is not None
    assert (card.data.also, card.data.since) == ((), None)
    assert (card.format_version, card.sample, card.drift, card.judgement) == (FORMAT_VERSION, None, None, None)


def test_card_is_written_as_it_was_read_with_the_fields_of_newer_versions_at_every_level() -> None:
    record = first_card() | {"licence": "MIT"}
    record["test"]["per_class"]["a"] = OF_CLASS | {"support": [1]}
    record["data"]["weather"] = None

    written = json.loads(card_to_json(read(record)))

    assert read(written) == read(record)
    assert written["licence"] == "MIT"
    assert written["test"]["per_class"]["a"] == record["test"]["per_class"]["a"]
    assert "weather" in written["data"]
    assert written["format_version"] == FORMAT_VERSION
    assert written["test"] == record["test"] | {"auroc": None}  # null is said; what a card need not have is left out
    assert "sample" not in written


def test_unpublished_card_is_as_good_as_none() -> None:
    assert read({}) == Card()
    assert {each.name for each in fields(Card) if getattr(Card(), each.name)} == {"format_version"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda card: card["test"].pop("accuracy"), r"test\.accuracy is missing"),
        (lambda card: card["test"].update(accuracy="high"), r"test\.accuracy is 'high' and not a number"),
        (lambda card: card["test"].update(num_rows=True), r"test\.num_rows is True and not a whole number"),
        (
            lambda card: card["test"]["confusion"][1].append(0.5),
            r"test\.confusion\[1\]\[2\] is 0\.5 and not a whole number",
        ),
        (lambda card: card["test"].update(per_class={"a": 1}), r"test\.per_class\.a is 1 and not an object"),
        (lambda card: card["data"].update(rows=None), r"data\.rows is None and not an object"),
        (lambda card: card["data"].update(source=7), r"data\.source is 7 and not text"),
        (lambda card: card.update(sample=[]), r"sample is \[\] and not an object"),
        (lambda card: card["training"].update(epochs={}), r"training\.epochs is {} and not a list"),
        (lambda card: card.update(format_version=2), r"it has format version 2, and this attnlstm knows 1; update"),
    ],
)
def test_damage_is_told_by_field(change: Any, what: str) -> None:
    record = first_card()
    change(record)
    with pytest.raises(ValueError, match=f"^{what}"):
        read(record)


def test_part_is_checked_where_it_is_made() -> None:
    sample = Sample.of({"contents": ["0a"], "probabilities": [[0.25, 0.75]]})
    assert sample == Sample(contents=("0a",), probabilities=((0.25, 0.75),))
    assert sample.record() == {"contents": ["0a"], "probabilities": [[0.25, 0.75]]}
