"""A tiny labelled dataset, checkpoints that know it, one scored output, and the command line in this process.

What takes a flow run to make is made once and read by many tests; tests that change a thing copy it first.
"""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from prefect import State, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.events.filters import EventFilter, EventNameFilter, EventRelatedFilter

from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from builders import make_champion, make_manifest, save_checkpoint
from flows.classify import classify
from flows.cli import app as cli
from flows.retrain import retrain
from servers import wait_until
from storage.locations import Location
from storage.output.manifests import FailureRecord, RunManifest, ShardRecord, read_manifest

# 2026-11-03 is missing, so that a range of dates can have a gap.
DATES = ("2026-11-01", "2026-11-02", "2026-11-04", "2026-11-05")
ALPHABETS = {
    "digits": np.frombuffer(b"0123456789 ", np.uint8),
    "letters": np.frombuffer(b"abcdefghijklm ", np.uint8),
    "high": np.arange(200, 256, dtype=np.uint8),
}
ROWS_PER_FILE = 105
ROWS_PER_GROUP = 5
SETTINGS: dict[str, Any] = {"keep": ["origin", "number"], "label_column": "label"}  # of the scored output
NOISE = 0.3  # share of tokens that say nothing of the class, so that no probability is just 0 or 1


@dataclass(frozen=True)
class Scored:
    """A classify run that is over."""

    state: State[Any]
    output: Path

    @property
    def manifest(self) -> RunManifest:
        found = read_manifest(Location.parse(self.output), str(self.state.state_details.flow_run_id))
        assert found is not None, self.state.message
        return found


@dataclass(frozen=True)
class Trained:
    """A retrain run that is over, and the registry that it filled."""

    state: State[Any]
    registry: Path
    version: str

    @property
    def folder(self) -> Path:
        return self.registry / "checkpoints" / self.version


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four Hive partitions by date, one file each: id, tokens (binary), label, group, origin, number.

    The first row of each file has null tokens and the second none at all. Read only.
    """
    root = tmp_path_factory.mktemp("dataset")
    random = np.random.default_rng(23)
    names = list(ALPHABETS)
    for index, date in enumerate(DATES):
        rows = np.arange(ROWS_PER_FILE) + index * ROWS_PER_FILE
        labels = [names[number] for number in random.integers(0, len(names), ROWS_PER_FILE)]
        tokens = [_tokens(random, label) for label in labels]
        table = pa.table(
            {
                "id": [f"row-{row:03d}" for row in rows],
                "tokens": pa.array([None, b"", *tokens[2:]], pa.binary()),
                "label": labels,
                "group": [f"group-{row // ROWS_PER_GROUP}" for row in rows],
                "origin": [f"sensor {row % 7}" for row in rows],
                "number": rows,
            }
        )
        (root / f"date={date}").mkdir()
        pq.write_table(table, root / f"date={date}" / "part-0.parquet")
    return root


def _tokens(random: np.random.Generator, label: str) -> bytes:
    length = int(random.integers(1, 60))
    telling = random.choice(ALPHABETS[label], length)
    noise = random.integers(0, 256, length).astype(np.uint8)
    return np.where(random.random(length) < NOISE, noise, telling).astype(np.uint8).tobytes()


@pytest.fixture
def dataset_copy(dataset: Path, tmp_path: Path) -> Path:
    """The dataset, to be changed at will."""
    return Path(shutil.copytree(dataset, tmp_path / "dataset"))


@pytest.fixture(scope="session")
def trained(prefect_server: str, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A registry whose champion was trained on the dataset by the retrain flow. Read only."""
    registry = tmp_path_factory.mktemp("trained") / "registry"
    state: Any = retrain(str(dataset), registry=str(registry), preset="reference", epochs=12, seed=3, return_state=True)
    assert state.is_completed(), state.message
    return Trained(state, registry, state.result()["version"])


@pytest.fixture
def registry_copy(trained: Trained, tmp_path: Path) -> Path:
    """The registry, to be changed at will."""
    return Path(shutil.copytree(trained.registry, tmp_path / "registry"))


def _untrained(attention: str) -> AttentionLSTM:
    torch.manual_seed(29)
    network = AttentionLSTM(ModelConfig(attention=attention, classes=tuple(sorted(ALPHABETS)), temperature=1.7))
    for parameter in network.parameters():
        parameter.data *= 2.5  # as they start, weights leave attention and probabilities almost uniform
    return network


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a checkpoint for each attention, never trained: random weights, large enough to matter."""
    folder = tmp_path_factory.mktemp("untrained")
    return {name: save_checkpoint(folder / name, _untrained(name)) for name in ("additive", "multihead")}


@pytest.fixture
def untrained_registry(tmp_path: Path) -> Path:
    """A registry of the test's own, whose champion was never trained."""
    make_champion(tmp_path / "registry", _untrained("additive"))
    return tmp_path / "registry"


@pytest.fixture(scope="session")
def scored(trained: Trained, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """The dataset, scored by the champion with labels, kept columns and all attention, by one worker. Read only."""
    output = tmp_path_factory.mktemp("scored") / "output"
    state = classify(
        str(dataset), str(output), registry=str(trained.registry), **SETTINGS, workers=1, return_state=True
    )
    assert state.is_completed(), state.message
    return Scored(state, output)


@pytest.fixture(scope="session")
def artifacts_of(prefect_server: str) -> Callable[[State[Any]], dict[str, Any]]:
    """artifacts_of(state): the last artifact of each key that a run has left on Prefect's page."""

    def read(state: State[Any]) -> dict[str, Any]:
        run = FlowRunFilter(id={"any_": [state.state_details.flow_run_id]})
        with get_client(sync_client=True) as client:
            found = client.read_artifacts(flow_run_filter=run)
        return {str(artifact.key): artifact for artifact in sorted(found, key=lambda each: each.created)}

    return read


@pytest.fixture(scope="session")
def events_of(prefect_server: str) -> Callable[..., list[Any]]:
    """events_of(run_id): what a run that is over has emitted, of ours and about assets, in order.

    last: how the name of its last event begins; that of classify is about the run.
    """

    def read(run_id: str, last: str = "attnlstm.run.") -> list[Any]:
        run = f"prefect.flow-run.{run_id}"
        names = EventNameFilter(prefix=["attnlstm.", "prefect.asset."])
        wanted = EventFilter(event=names, related=EventRelatedFilter(id=[run]))
        with get_client(sync_client=True) as client:
            found: list[Any] = []

            def is_over() -> bool:
                found[:] = client.read_events(wanted, limit=50).events
                return any(event.event.startswith(last) for event in found)

            wait_until(is_over, 30)
        return sorted(found, key=lambda event: event.occurred)

    return read


@pytest.fixture
def output_copy(scored: Scored, tmp_path: Path) -> Path:
    """The scored output, to be changed at will."""
    return Path(shutil.copytree(scored.output, tmp_path / "output"))


@pytest.fixture
def rescore(trained: Trained, dataset: Path) -> Callable[..., Scored]:
    """Classifies into an output with the settings of the scored one, save for those that are given."""

    def run(output: Path, source: Path = dataset, **options: Any) -> Scored:
        settings = {"registry": str(trained.registry), **SETTINGS, **options}
        return Scored(classify(str(source), str(output), **settings, return_state=True), output)

    return run


@pytest.fixture
def publish(registry_copy: Path) -> Callable[[int], str]:
    """Adds a checkpoint with random weights of a seed to the copied registry as champion; gives its version."""

    def add(seed: int) -> str:
        torch.manual_seed(seed)
        return make_champion(registry_copy, AttentionLSTM(ModelConfig(classes=tuple(sorted(ALPHABETS)))))

    return add


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def attnlstm(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ended]]:
    """Runs a command line in this process, against the tests' server."""
    loggers = [logging.getLogger(name) for name in ("prefect.flow_runs", "prefect.task_runs", "EventsWorker")]
    before = [(logger, logger.propagate, logger.level) for logger in loggers]
    environment = dict(os.environ)

    def run(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["attnlstm", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, printed.out, printed.err)

    yield run
    # A command prepares the process that it is about to fill; here the process goes on.
    os.environ.clear()
    os.environ.update(environment)
    for logger, propagate, level in before:
        logger.propagate, logger.level = propagate, level


@pytest.fixture(scope="session")
def plain_manifest() -> RunManifest:
    """The record of a run that scored nothing and has nothing to tell. Tests replace what they are about."""
    return make_manifest()


@pytest.fixture(scope="session")
def telling_manifest(plain_manifest: RunManifest) -> RunManifest:
    """Of a run that scored two shards and failed at one file; the output's name has a space and brackets."""
    return replace(
        plain_manifest,
        state="failed",
        output="/out put [1]",
        shards=(
            ShardRecord(
                "a.parquet", "missing", 1307, 3_000_000, 0, {"no tokens": 7}, {"x": 900, "y|z": 400}, 1.5,
                file="a.parquet", first_errors={"no tokens": [3, 1001, 1002]},
            ),
            ShardRecord(
                "b-00001-of-00002.parquet", "stale", 110, 500, 0, {"no tokens": 9, "tokens are null": 1}, {"x": 100},
                0.25, file="b.parquet", first_errors={"no tokens": [20, 21, 22, 23, 24], "tokens are null": [19]},
            ),
        ),
        failures=(FailureRecord("c.parquet", "damaged: cut\nshort"),),
        evaluation={"accuracy": 0.75, "macro_f1": 0.5},
        drift={
            "drifted": ["tokens"],
            "shifts": {
                "tokens": {"psi": 0.5, "jensen_shannon": 0.25, "limit": 0.125, "drifted": True},
                "lengths": {"psi": 0.0, "jensen_shannon": 0.0, "limit": 0.125, "drifted": False},
            },
            "estimated_accuracy": 0.9,
        },
    )  # fmt: skip
