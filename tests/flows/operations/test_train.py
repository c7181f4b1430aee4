"""What is trained, on which rows, from which weights; what was stopped goes on, and what is done is not done again."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attnlstm.config import ModelConfig
from attnlstm.training.settings import TrainingSettings
from builders import StoppedError
from flows.cli.checkpoints import card_facts
from flows.operations.train import Listener, TrainingRequest, train_checkpoint, training_digest, usual_vocabulary
from storage.errors import SourceError
from storage.input.partitions import DateRange
from storage.labelled.source import LabelledSource
from storage.registry.checkpoints import Registry, StoredCheckpoint
from storage.registry.retention import read_snapshot, snapshot_location, write_snapshot

Train = Callable[..., StoredCheckpoint]


def request(source: Path | LabelledSource, **options: Any) -> TrainingRequest:
    """A short training of the smallest network. What is no field of the request is a setting."""
    labelled = LabelledSource(str(source)) if isinstance(source, Path) else source
    fields = {name: options.pop(name) for name in ("warm_start", "vanished_classes", "attention") if name in options}
    overrides = {"epochs": 2, "threads": 1, **options}
    return TrainingRequest(labelled=labelled, preset="reference", overrides=overrides, **fields)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(str(tmp_path / "registry"))


@pytest.fixture
def train(registry: Registry) -> Train:
    """Trains into the test's registry; `notes` takes what is noted."""

    def run(
        source: Path | LabelledSource,
        notes: list[str] | None = None,
        on_epoch: Callable[[Any], None] = lambda epoch: None,
        **options: Any,
    ) -> StoredCheckpoint:
        told = [] if notes is None else notes
        return train_checkpoint(request(source, **options), registry, Listener(on_epoch, told.append))

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(name, labels, **columns): a one-file dataset with these labels, tokens that tell them, and more columns."""

    def put(name: str, labels: list[Any], **columns: Any) -> Path:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = {label: number for number, label in enumerate(sorted(set(labels) - {None}))}
        tokens = [bytes([40 * numbers.get(label, 5), row % 256, row // 256]) for row, label in enumerate(labels)]
        pq.write_table(pa.table({"tokens": tokens, "label": labels, **columns}), path)
        return path

    return put


def stop_after(num_epochs: int) -> Callable[[Any], None]:
    def stop(report: Any) -> None:
        if report.epoch == num_epochs:
            raise StoppedError

    return stop


def test_training_that_was_stopped_goes_on_and_ends_with_the_same_weights(
    train: Train, registry: Registry, dataset: Path, tmp_path: Path
) -> None:
    undisturbed = train_checkpoint(request(dataset, epochs=4), Registry.open(str(tmp_path / "undisturbed")), Listener())
    with pytest.raises(StoppedError):
        train(dataset, epochs=4, on_epoch=stop_after(2))
    assert registry.versions() == []
    (folder,) = Path(registry.root.path, "training").iterdir()
    assert (folder / "snapshot").is_file()

    seen: list[int] = []
    notes: list[str] = []
    resumed = train(dataset, notes, on_epoch=lambda report: seen.append(report.epoch), epochs=4)

    assert seen in ([2, 3, 4], [3, 4])  # a snapshot may be left out where it costs too much
    assert "training goes on where it was stopped" in notes
    assert resumed.digest == undisturbed.digest
    assert len(resumed.card.training.epochs) == 4
    assert list(Path(registry.root.path, "training").iterdir()) == []


def test_vocabulary_that_is_asked_for_is_trained_and_recorded(train: Train, registry: Registry, tmp_path: Path) -> None:
    source = tmp_path / "wide.parquet"
    tokens = [[65_000 + row % 2, row % 300] for row in range(200)]
    pq.write_table(pa.table({"tokens": tokens, "label": ["x", "y"] * 100}), source)
    with pytest.raises(SourceError, match=r"^200 of the 200 labelled rows .* --num-embeddings 65003 makes a network"):
        train(source)
    pq.write_table(pa.table({"tokens": [*tokens, [-1], []], "label": ["x", "y"] * 101}), source)
    assert usual_vocabulary(registry) == 257
    stored = train(LabelledSource(str(source), num_tokens_known=65_002), epochs=20)
    registry.promote(stored.version, "a test")
    assert usual_vocabulary(registry) == 65_003
    assert json.loads(stored.files["config.json"])["num_embeddings"] == 65_003
    readme = Path(stored.location.path, "README.md").read_text()
    assert "An attention-LSTM over sequences of token ids from 0 to 65001 with 2 classes" in readme
    left_out = "2 whose tokens can't be scored (1 with token ids outside the vocabulary, the least is -1)"
    assert f"Rows that were left out: {left_out}." in readme
    assert card_facts(stored.card)["left out"] == f"rows {left_out}"
    assert stored.card.test.accuracy == 1.0


def test_snapshot_of_other_rows_or_settings_is_not_gone_on_from(
    train: Train, registry: Registry, dataset: Path, dataset_copy: Path
) -> None:
    with pytest.raises(StoppedError):
        train(dataset, epochs=4, on_epoch=stop_after(1))
    shutil.rmtree(dataset_copy / "date=2026-11-05")
    for source, options in (
        (dataset, {"epochs": 3}),
        (dataset, {"epochs": 4, "seed": 9}),
        (dataset_copy, {"epochs": 4}),
    ):
        notes: list[str] = []
        train(source, notes, **options)
        assert notes == ["training starts from scratch"]
    assert len(list(Path(registry.root.path, "training").iterdir())) == 1


def test_damaged_snapshot_and_a_pickle_in_its_place_stand_in_nobodys_way(
    train: Train, registry: Registry, dataset: Path, tmp_path: Path
) -> None:
    undisturbed = train_checkpoint(request(dataset), Registry.open(str(tmp_path / "undisturbed")), Listener())
    mark = tmp_path / "mark"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (mark,)

    digest = undisturbed.card.training.digest
    for content in (b"", b"no snapshot", pickle.dumps(Bomb())):
        write_snapshot(registry, digest, content)
        notes: list[str] = []
        stored = train(dataset, notes)
        assert any(note.startswith("training starts again: ") for note in notes)
        assert stored.digest == undisturbed.digest
        assert read_snapshot(registry, digest) is None
        shutil.rmtree(stored.location.path)
    assert not mark.exists()


def test_digest_is_of_rows_network_settings_and_start_and_not_of_threads_or_a_time_limit(dataset: Path) -> None:
    rows = LabelledSource(str(dataset)).read()
    config, settings = ModelConfig(classes=rows.classes), TrainingSettings()
    known = training_digest(rows, config, settings, "")
    assert training_digest(rows, config, replace(settings, threads=1, max_seconds=1.0), "") == known
    others = {
        training_digest(replace(rows, labels=np.roll(rows.labels, 1)), config, settings, ""),
        training_digest(replace(rows, contents=np.roll(rows.contents, 1)), config, settings, ""),
        training_digest(rows, replace(config, dropout=0.5), settings, ""),
        training_digest(rows, config, replace(settings, seed=1), ""),
        training_digest(rows, config, settings, "of a champion"),
    }
    assert len(others - {known}) == 5


def test_what_is_trained_already_is_not_trained_again(train: Train, registry: Registry, dataset: Path) -> None:
    stored = train(dataset)
    notes: list[str] = []

    again = train(dataset, notes, on_epoch=stop_after(1), threads=2)

    assert again == stored
    assert notes == [f"{stored.version} was trained on the same rows with the same settings: nothing to train"]
    Path(stored.location.path, "model.safetensors").write_bytes(b"half copied")
    assert train(dataset).digest == stored.digest
    assert len(registry.versions()) == 2


def test_training_that_a_time_limit_cut_short_is_not_taken_for_one_with_another_limit(
    train: Train, dataset: Path
) -> None:
    cut = train(dataset, epochs=200, max_seconds=0.5)
    assert cut.card.training.stopped_by == "time"
    assert train(dataset, epochs=200, max_seconds=0.5).version == cut.version
    assert train(dataset, epochs=200, max_seconds=0.6).version != cut.version


def test_stale_snapshots_go_when_a_training_begins(train: Train, registry: Registry, dataset: Path) -> None:
    write_snapshot(registry, "forgotten", b"old")
    os.utime(snapshot_location(registry, "forgotten").path, (0, 0))
    train(dataset, epochs=1)
    assert list(Path(registry.root.path, "training").iterdir()) == []


def test_integer_labels_become_classes_in_order_of_value_and_rows_without_one_are_counted(
    train: Train, write: Callable[..., Path]
) -> None:
    stored = train(write("rows.parquet", [(10, 9, None, 200)[index % 4] for index in range(200)]), epochs=1)

    assert json.loads(stored.files["config.json"])["classes"] == ["9", "10", "200"]
    assert stored.card.data.num_unlabelled == 50
    assert stored.card.data.split_by == "content"
    assert "Rows that were left out: 50 without a label." in Path(stored.location.path, "README.md").read_text()


def test_several_sources_and_a_range_of_dates_are_on_the_card(
    train: Train, dataset: Path, write: Callable[..., Path]
) -> None:
    more = write("more/date=2026-11-05/rows.parquet", ["digits", "letters"] * 30)
    labelled = LabelledSource(str(dataset), also=(str(more.parents[1]),), dates=DateRange(window="2d"))

    data = train(labelled, epochs=1).card.data

    assert (data.source, data.also, data.num_files) == (str(dataset), (str(more.parents[1]),), 3)
    assert (data.window, data.since, data.split_by) == ("2d", "2026-11-04", "group and content")
    assert sum(data.rows.values()) == 2 * 103 + 60
    since = LabelledSource(str(dataset), dates=DateRange(since=date(2026, 11, 4)))
    assert train(since, epochs=1).card.data.num_files == 2


def test_duplicates_across_groups_and_conflicting_labels_are_on_the_card_and_in_the_readme(
    train: Train, write: Callable[..., Path]
) -> None:
    source = write("rows.parquet", ["a", "b"] * 60, group=[f"g{row}" for row in range(120)])
    table = pq.read_table(source)
    column = table.column_names.index("tokens")
    pq.write_table(
        table.set_column(column, "tokens", pa.array([b"same"] * 50 + table["tokens"].to_pylist()[50:])), source
    )

    stored = train(source, epochs=1)

    duplicates = stored.card.data.duplicates
    assert (duplicates["num_rows"], duplicates["num_across_sides"]) == (49, 1)
    assert (duplicates["num_conflicting"], duplicates["num_conflicting_rows"]) == (1, 50)
    readme = Path(stored.location.path, "README.md").read_text()
    assert f"{duplicates['num_test_rows_seen']} test rows have the same tokens as rows of another group" in readme
    assert "50 rows have the same tokens as rows of another class" in readme


def test_class_with_too_few_rows_is_left_out_and_named(train: Train, write: Callable[..., Path]) -> None:
    source = write("rows.parquet", ["a", "b"] * 60 + ["rare"] * 4)

    stored = train(LabelledSource(str(source), min_class_rows=10), epochs=1)

    assert json.loads(stored.files["config.json"])["classes"] == ["a", "b"]
    assert stored.card.data.left_out == {"rare": 4}
    assert "left out: rare (4 rows)." in Path(stored.location.path, "README.md").read_text()


def test_class_that_vanished_is_refused_unless_it_may_go(
    train: Train, registry: Registry, write: Callable[..., Path]
) -> None:
    champion = train(write("before.parquet", ["a", "b", "c", "d"] * 50), epochs=1)
    registry.promote(champion.version, "a test")
    after = write("after.parquet", ["a", "b"] * 60 + ["c"] * 3)

    with pytest.raises(SourceError) as refused:
        train(LabelledSource(str(after), min_class_rows=5), epochs=1)

    assert str(refused.value) == (
        f"The champion {champion.version} knows classes that {after} has no rows to train on of: c (too few), d. "
        "A new checkpoint could never name them. Give more sources or a longer window, or let them go with "
        "--vanished-classes drop."
    )
    stored = train(LabelledSource(str(after), min_class_rows=5), epochs=1, vanished_classes="drop")
    assert json.loads(stored.files["config.json"])["classes"] == ["a", "b"]


def test_warm_start_goes_on_from_a_champion_that_fits_and_takes_a_new_class_in(
    train: Train, registry: Registry, write: Callable[..., Path]
) -> None:
    def started_from(source: Path, **options: Any) -> str:
        return str(train(source, warm_start=True, **options).card.training.started_from)

    source = write("before.parquet", ["a", "b"] * 80)
    assert started_from(source, seed=1) == "scratch: there is no champion yet"
    champion = train(source, epochs=8)
    registry.promote(champion.version, "a test")

    warm = train(source, warm_start=True, epochs=1)
    cold = train(source, epochs=1)

    assert warm.card.training.started_from == f"champion {champion.version}"
    assert cold.card.training.started_from == "scratch"
    assert warm.card.test.log_loss < cold.card.test.log_loss
    new_class = write("after.parquet", ["a", "b", "c"] * 60)
    assert started_from(new_class, epochs=1) == f"champion {champion.version}"
    assert started_from(source, attention="multihead") == (
        f"scratch: champion {champion.version} does not fit, it has attention additive, not multihead"
    )
    grouped = write("grouped.parquet", ["a", "b"] * 80, group=[f"g{row}" for row in range(160)])
    assert started_from(grouped) == f"scratch: the rows of champion {champion.version} were split otherwise"


def test_card_keeps_what_drift_and_attention_are_judged_by(train: Train, dataset: Path) -> None:
    card = train(dataset, epochs=1).card

    assert card.drift["num_rows"] == card.test.num_rows
    assert card.faithfulness["num_rows"] > 0
    assert card.test.ece_before_scaling != card.test.ece
    assert len(card.sample.contents) == len(card.sample.probabilities) == 16


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({}, ("content: train 3, validation 1, test 0. Test has", "each of its 4 distinct rows")),
        ({"group": ["g"] * 4}, ("group: train 4, validation 0, test 0. Validation and test have", "its one group")),
    ],
    ids=["rows", "groups"],
)
def test_too_few_rows_to_split_are_refused_and_no_registry_is_made(
    columns: dict[str, Any], told: tuple[str, str], train: Train, registry: Registry, write: Callable[..., Path]
) -> None:
    source = write("rows.parquet", ["a", "b", "a", "b"], **columns)

    with pytest.raises(SourceError) as refused:
        train(LabelledSource(str(source), min_class_rows=0))

    assert str(refused.value) == (
        f"The source {source} has too few labelled rows to split by {told[0]} none: a hash takes {told[1]} to "
        "validation or test with a chance of a tenth each, so some 50 are needed. Give more of them."
    )
    assert not Path(registry.root.path).exists()
