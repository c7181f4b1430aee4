"""How retrain splits, publishes, judges and promotes. The networks are tiny and the classes easy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter

from attnlstm.training import TrainingSettings
from flows.retrain import retrain
from flows.training import LabelledSource, judge_checkpoint, train_checkpoint
from storage.registry import Registry
from storage.split import TRAIN, assign_splits


def _train(source: Path, registry: Path, **settings: Any) -> str:
    """The version of a checkpoint that was trained without Prefect and not judged."""
    labelled = LabelledSource(str(source))
    options = TrainingSettings(**{"epochs": 1, **settings})
    return train_checkpoint(labelled, Registry.open(str(registry)), "additive", options, lambda epoch: None).version


def _champion(registry: Path) -> str:
    return str(json.loads((registry / "aliases" / "champion.json").read_text())["version"])


def test_first_checkpoint_that_beats_the_commonest_class_becomes_champion(trained: Any) -> None:
    champion = json.loads((trained.registry / "aliases" / "champion.json").read_text())

    assert trained.state.result() == {"version": trained.version, "promoted": True}
    assert trained.state.message.startswith(f"{trained.version} is champion: the first checkpoint, test accuracy 0.")
    assert champion["version"] == trained.version
    assert champion["before"] == []


def test_checkpoint_folder_is_complete_and_its_card_says_how_it_was_made(trained: Any, dataset: Path) -> None:
    assert sorted(path.name for path in trained.folder.iterdir()) == [
        "README.md",
        "card.json",
        "config.json",
        "model.safetensors",
    ]
    card = json.loads((trained.folder / "card.json").read_text())

    assert card["version"] == trained.version
    assert card["test"]["accuracy"] > 0.8 > card["test"]["majority_accuracy"]
    assert card["test"]["num_rows"] == card["data"]["rows"]["test"]
    assert card["data"]["source"] == str(dataset)
    assert card["data"]["split_by"] == "group"
    assert card["data"]["num_unusable"] == 8
    assert sum(card["data"]["rows"].values()) == sum(card["data"]["rows_per_class"].values()) == 412
    assert card["training"]["settings"]["seed"] == 3
    assert len(card["training"]["epochs"]) == 12
    assert {"attnlstm", "torch", "pyarrow"} <= set(card["versions"])
    assert json.loads((trained.folder / "config.json").read_text())["classes"] == ["digits", "high", "letters"]


def test_temperature_is_calibrated_on_the_validation_rows(trained: Any) -> None:
    assert json.loads((trained.folder / "config.json").read_text())["temperature"] != 1


def test_prefect_shows_the_report_the_progress_and_both_tasks(trained: Any, dataset: Path) -> None:
    filtered = FlowRunFilter(id={"any_": [trained.state.state_details.flow_run_id]})
    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: artifact.data for artifact in client.read_artifacts(flow_run_filter=filtered)}
        task_runs = client.read_task_runs(flow_run_filter=filtered)

    assert sorted(map(str, artifacts)) == ["retrain-progress", "retrain-report"]
    assert artifacts["retrain-progress"] == 100
    assert str(artifacts["retrain-report"]).startswith("**Promoted**: the first checkpoint")
    assert sorted(str(task_run.name) for task_run in task_runs) == [f"judge {trained.version}", f"train on {dataset}"]


def test_later_checkpoint_is_judged_against_the_champion_and_the_worse_one_is_not_promoted(
    registry_copy: Path, dataset: Path, trained: Any
) -> None:
    state: Any = retrain(str(dataset), registry=str(registry_copy), attention="multihead", epochs=1, return_state=True)

    version = state.result()["version"]
    assert state.is_completed()
    assert state.result()["promoted"] is False
    accuracy = json.loads((trained.folder / "card.json").read_text())["test"]["accuracy"]
    assert f"champion {trained.version} has {accuracy:.4f} on the same rows" in state.message
    assert state.message.startswith(f"{version} was not promoted: test accuracy 0.")
    assert _champion(registry_copy) == trained.version
    assert Registry.open(str(registry_copy)).versions() == sorted([trained.version, version])
    config = json.loads((registry_copy / "checkpoints" / version / "config.json").read_text())
    assert config["attention"] == "multihead"


def test_checkpoint_that_learned_from_shuffled_labels_is_not_promoted(
    registry_copy: Path, dataset_copy: Path, trained: Any
) -> None:
    random = np.random.default_rng(41)
    for path in dataset_copy.rglob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        to_train_on = assign_splits(name.encode() for name in table["group"].to_pylist()) == TRAIN
        labels = np.array(table["label"].to_pylist())
        labels[to_train_on] = random.permutation(labels[to_train_on])
        place = table.column_names.index("label")
        pq.write_table(table.set_column(place, "label", pa.array(labels.tolist())), path)
    registry = Registry.open(str(registry_copy))

    version = _train(dataset_copy, registry_copy, epochs=5)
    verdict = judge_checkpoint(LabelledSource(str(dataset_copy)), registry, version)

    assert not verdict.promoted
    assert _champion(registry_copy) == trained.version


def test_checkpoint_that_is_as_good_as_the_champion_takes_its_place(
    registry_copy: Path, dataset: Path, trained: Any
) -> None:
    registry = Registry.open(str(registry_copy))
    twin = registry.publish(registry.load(trained.version).files, registry.load(trained.version).card, "# A twin\n")

    verdict = judge_checkpoint(LabelledSource(str(dataset)), registry, twin.version)

    assert verdict.promoted
    assert _champion(registry_copy) == twin.version
    record = json.loads((registry_copy / "aliases" / "champion.json").read_text())
    assert [before["version"] for before in record["before"]] == [trained.version]


def test_first_checkpoint_that_does_not_beat_the_commonest_class_is_not_promoted(
    trained: Any, dataset: Path, tmp_path: Path
) -> None:
    registry = Registry.open(str(tmp_path / "registry"))
    stored = Registry.open(str(trained.registry)).load(trained.version)
    poor = {"accuracy": 0.4, "majority_accuracy": 0.4}
    version = registry.publish(stored.files, {"test": poor}, "# Poor\n").version

    verdict = judge_checkpoint(LabelledSource(str(dataset)), registry, version)

    assert not verdict.promoted
    assert verdict.why == "its test accuracy 0.4000 does not beat the commonest class's 0.4000"
    assert registry.alias() is None


def test_same_seed_gives_the_same_weights_and_another_seed_others(dataset: Path, tmp_path: Path) -> None:
    digests = []
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        version = _train(dataset, tmp_path / name, seed=seed, threads=1 if name == "first" else 2)
        digests.append(Registry.open(str(tmp_path / name)).load(version).digest)

    assert digests[0] == digests[1] != digests[2]


@pytest.fixture
def relabelled(dataset: Path, tmp_path: Path) -> Callable[..., Path]:
    """A one-file dataset of `num_rows` rows with labels of one's own."""

    def write(labels: list[Any]) -> Path:
        folder = tmp_path / "relabelled"
        folder.mkdir()
        tokens = [bytes([index % 256, 65 + index % 20]) for index in range(len(labels))]
        pq.write_table(pa.table({"tokens": tokens, "label": labels}), folder / "rows.parquet")
        return folder

    return write


def test_integer_labels_become_classes_in_order_of_value(relabelled: Callable[..., Path], tmp_path: Path) -> None:
    source = relabelled([(10, 9, None, 200)[index % 4] for index in range(200)])

    version = _train(source, tmp_path / "registry")

    stored = Registry.open(str(tmp_path / "registry")).load(version)
    assert json.loads(stored.files["config.json"])["classes"] == ["9", "10", "200"]
    assert stored.card["data"]["num_unlabelled"] == 50
    assert stored.card["data"]["split_by"] == "content"


def test_too_few_rows_to_split_are_refused_and_no_registry_is_made(
    relabelled: Callable[..., Path], tmp_path: Path
) -> None:
    source = relabelled(["a", "b"])

    with pytest.raises(Exception, match=f"The source {source} has too few labelled rows to split by content: train"):
        _train(source, tmp_path / "registry")
    assert not (tmp_path / "registry").exists()
