"""Retraining that is killed anywhere and started again: the registry is whole, the weights are the undisturbed ones.

ATTNLSTM_RETRAIN_KILLS sets how often it is killed; `make retrainkills` runs the long form.
"""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from attnlstm.checkpoint import from_files
from flows.operations.promote import decide_promotion
from flows.operations.train import Listener, TrainingRequest, train_checkpoint
from storage.labelled.source import LabelledSource
from storage.registry.checkpoints import Registry

ROUNDS = int(os.environ.get("ATTNLSTM_RETRAIN_KILLS", "4"))
EPOCHS = 3


def retrain(source: str, registry: str, seed: int) -> None:
    """What the tasks of a retrain run do."""
    labelled, opened = LabelledSource(source), Registry.open(registry)
    overrides = {"epochs": EPOCHS, "threads": 1, "seed": seed, "patience": EPOCHS}
    request = TrainingRequest(labelled=labelled, preset="reference", overrides=overrides)
    decide_promotion(labelled, opened, train_checkpoint(request, opened, Listener()).version)


@pytest.fixture(scope="module")
def context() -> multiprocessing.context.ForkServerContext:
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(
        [
            "flows.operations.promote",
            "attnlstm.training.loop",
            "attnlstm.training.settings",
            "attnlstm.engines.fused_cpu",
        ]
    )
    return forkserver


def check_whole(registry: Registry) -> None:
    """Raises if a version can't be loaded, or if the champion is none."""
    for version in registry.versions():
        stored = registry.load(version)
        from_files(stored.files, where=version)
    if registry.alias() is not None:
        registry.load("champion")


def decision(registry: Registry) -> tuple[str, list[str]]:
    """The champion's weights, and what was decided about each version."""
    outcomes = sorted(
        str(getattr(registry.card(version).judgement, "outcome", None)) for version in registry.versions()
    )
    return registry.load("champion").digest, outcomes


@pytest.mark.slow
def test_registry_is_whole_and_weights_are_the_undisturbed_ones_after_kills_at_random_moments(
    context: multiprocessing.context.ForkServerContext, dataset: Path, tmp_path: Path
) -> None:
    chance = random.Random(ROUNDS)
    undisturbed = {}
    longest = 0.0
    for seed in (0, 1):
        began = time.perf_counter()
        child = context.Process(target=retrain, args=(str(dataset), str(tmp_path / f"undisturbed-{seed}"), seed))
        child.start()
        child.join()
        assert child.exitcode == 0
        longest = time.perf_counter() - began
        undisturbed[seed] = Registry.open(str(tmp_path / f"undisturbed-{seed}"))
    kills = registries = 0
    while kills < ROUNDS:
        seed = registries % 2
        place = tmp_path / f"registry-{registries}"
        registry = Registry.open(str(place))
        registries += 1
        while True:
            child = context.Process(target=retrain, args=(str(dataset), str(place), seed))
            child.start()
            child.join(chance.uniform(0, longest))
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
                kills += 1
            child.join()
            check_whole(registry)
            if child.exitcode == 0:
                break
        (version,) = registry.versions()
        (theirs,) = undisturbed[seed].versions()
        assert registry.load(version).digest == undisturbed[seed].load(theirs).digest
        assert (registry.alias() is None) == (undisturbed[seed].alias() is None)
        assert list((place / "training").glob("*/snapshot")) == []
    print(f"{kills} kills over {registries} registries")


@pytest.mark.slow
def test_two_retrainings_at_once_are_both_judged_and_both_remembered(
    context: multiprocessing.context.ForkServerContext, dataset: Path, tmp_path: Path
) -> None:
    registry = Registry.open(str(tmp_path / "registry"))
    children = [
        context.Process(target=retrain, args=(str(dataset), str(tmp_path / "registry"), seed)) for seed in (0, 1, 2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    check_whole(registry)
    assert len(registry.versions()) == 3
    # One that was overtaken while it was judged has failed, and is judged when it is run again.
    for seed, child in enumerate(children):
        if child.exitcode:
            retrain(str(dataset), str(tmp_path / "registry"), seed)
    alias = registry.alias()
    assert alias is not None
    champions = {alias.version, *(each.version for each in alias.before)}
    outcomes = {version: registry.card(version).judgement.outcome for version in registry.versions()}
    assert {version for version, outcome in outcomes.items() if outcome == "promoted"} == champions
    assert len(champions) == len(alias.before) + 1
    assert json.loads((tmp_path / "registry/aliases/champion.json").read_text())["version"] == alias.version
