"""What a retrain run does and shows: the checkpoint, the alias, the record, artifacts, events. The classes are easy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter

import flows.orchestration.events
from flows.retrain import retrain
from storage.registry.checkpoints import Registry


def _champion(registry: Path) -> str:
    return str(json.loads((registry / "aliases" / "champion.json").read_text())["version"])


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The events that flows emit in this test."""
    emitted: list[dict[str, Any]] = []
    monkeypatch.setattr(flows.orchestration.events, "emit_event", lambda **event: emitted.append(event))
    return emitted


def test_first_checkpoint_that_beats_the_commonest_class_becomes_champion(trained: Any) -> None:
    champion = json.loads((trained.registry / "aliases" / "champion.json").read_text())

    assert trained.state.result() == {"version": trained.version, "promoted": True, "outcome": "promoted"}
    assert trained.state.message.startswith(f"{trained.version} is champion: the first checkpoint, test accuracy ")
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
    assert 1 <= card["training"]["best_epoch"] <= len(card["training"]["epochs"]) <= 12
    assert {"attnlstm", "torch", "pyarrow"} <= set(card["versions"])
    assert json.loads((trained.folder / "config.json").read_text())["classes"] == ["digits", "high", "letters"]


def test_decision_is_on_the_card_and_in_the_record_of_the_run(trained: Any) -> None:
    card = json.loads((trained.folder / "card.json").read_text())
    record = json.loads((trained.registry / f"runs/{trained.state.state_details.flow_run_id}.json").read_text())

    assert card["judgement"]["outcome"] == record["outcome"] == "promoted"
    assert card["judgement"]["why"] == record["why"]
    assert record["judgement"] == card["judgement"]
    assert record["version"] == trained.version
    assert record["started"] <= record["ended"]


def test_prefect_shows_the_report_the_curve_the_progress_and_both_tasks(
    trained: Any, dataset: Path, artifacts_of: Callable[..., dict[str, Any]]
) -> None:
    filtered = FlowRunFilter(id={"any_": [trained.state.state_details.flow_run_id]})
    with get_client(sync_client=True) as client:
        task_runs = client.read_task_runs(flow_run_filter=filtered)

    artifacts = {key: artifact.data for key, artifact in artifacts_of(trained.state).items()}
    num_epochs = len(json.loads((trained.folder / "card.json").read_text())["training"]["epochs"])
    assert sorted(artifacts) == ["retrain-curve", "retrain-page", "retrain-progress", "retrain-report"]
    assert artifacts["retrain-progress"] == 100
    assert str(artifacts["retrain-report"]).startswith("**Promoted**: the first checkpoint")
    assert str(artifacts["retrain-curve"]).splitlines()[-1].startswith(f"| {num_epochs} of ")
    assert sorted(str(task_run.name) for task_run in task_runs) == [f"judge {trained.version}", f"train on {dataset}"]


def test_worse_challenger_is_kept_and_not_promoted_and_the_same_run_again_trains_nothing(
    registry_copy: Path, dataset: Path, trained: Any, events: list[dict[str, Any]]
) -> None:
    options: dict[str, Any] = {"registry": str(registry_copy), "preset": "reference", "attention": "multihead"}
    state: Any = retrain(str(dataset), **options, epochs=1, return_state=True)

    version = state.result()["version"]
    assert state.is_completed()
    assert (state.result()["promoted"], state.result()["outcome"]) == (False, "rejected")
    accuracy = json.loads((trained.folder / "card.json").read_text())["test"]["accuracy"]
    assert f"champion {trained.version} has {accuracy:.4f} on the same " in state.message
    assert state.message.startswith(f"{version} was not promoted: its test accuracy is ")
    assert _champion(registry_copy) == trained.version
    assert Registry.open(str(registry_copy)).versions() == sorted([trained.version, version])
    config = json.loads((registry_copy / "checkpoints" / version / "config.json").read_text())
    assert config["attention"] == "multihead"

    again: Any = retrain(str(dataset), **options, epochs=1, return_state=True)

    assert again.result() == state.result()
    assert Registry.open(str(registry_copy)).versions() == sorted([trained.version, version])
    assert [(event["event"], event["payload"]["version"]) for event in events] == [
        ("attnlstm.checkpoint.rejected", version)
    ] * 2


def test_champion_that_is_trained_again_is_left_as_it_is_and_no_event_is_emitted(
    registry_copy: Path, dataset: Path, trained: Any, events: list[dict[str, Any]]
) -> None:
    before = (registry_copy / "aliases/champion.json").read_bytes()

    options: dict[str, Any] = {"preset": "reference", "epochs": 12, "seed": 3, "return_state": True}
    state: Any = retrain(str(dataset), registry=str(registry_copy), **options)

    assert state.result() == {"version": trained.version, "promoted": False, "outcome": "unchanged"}
    assert state.message.startswith(f"{trained.version} changes nothing: it is champion already, since ")
    assert (registry_copy / "aliases/champion.json").read_bytes() == before
    assert events == []


def test_promotion_emits_an_event_with_the_reason(
    dataset: Path, tmp_path: Path, events: list[dict[str, Any]], prefect_server: str
) -> None:
    options: dict[str, Any] = {"preset": "reference", "epochs": 12, "max_seconds": 60, "return_state": True}
    state: Any = retrain(str(dataset), registry=str(tmp_path / "registry"), **options)

    (event,) = events
    assert event["event"] == "attnlstm.checkpoint.promoted", state.message
    assert event["payload"]["version"] == state.result()["version"]
    assert state.message.endswith(event["payload"]["why"])


def test_alias_that_is_damaged_stops_the_run_before_anything_is_trained(registry_copy: Path, dataset: Path) -> None:
    (registry_copy / "aliases/champion.json").write_text("{")
    versions = Registry.open(str(registry_copy)).versions()

    state: Any = retrain(str(dataset), registry=str(registry_copy), epochs=1, return_state=True)

    assert state.is_failed()
    assert "champion.json is damaged" in str(state.result(raise_on_failure=False))
    assert Registry.open(str(registry_copy)).versions() == versions
