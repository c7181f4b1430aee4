"""The commands about checkpoints: what they print and move, without Prefect and, but for one, without the model."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def checkpoints(attnlstm: Run, registry_copy: Path) -> Run:
    """Runs `attnlstm checkpoints ...` on the copied registry."""
    return lambda *words: attnlstm("checkpoints", *words, "--registry", str(registry_copy))


def champion(registry: Path) -> dict[str, Any]:
    return dict(json.loads((registry / "aliases" / "champion.json").read_text()))


def test_list_names_champion_reads_no_weights_and_goes_on_past_a_damaged_card(
    checkpoints: Run, registry_copy: Path, publish: Any, trained: Any
) -> None:
    version = publish(1)
    for path in registry_copy.rglob("model.safetensors"):
        path.unlink()
    (registry_copy / "checkpoints" / trained.version / "card.json").write_text("{")

    listed, rows = checkpoints("list").out, json.loads(checkpoints("list", "--json").out)

    assert listed.splitlines()[-1].startswith("champion since ")
    assert [(row["version"], row["champion"]) for row in rows] == [(trained.version, False), (version, True)]
    assert "card.json is damaged" in rows[0]["damage"]
    assert rows[1]["damage"] is None


def test_show_tells_figures_data_and_judgement(checkpoints: Run, trained: Any, dataset: Path) -> None:
    shown, by_version = checkpoints("show"), checkpoints("show", trained.version)

    assert shown.code == 0
    assert shown.out == by_version.out
    for text in (trained.version, f"{dataset}: train ", "split by group", "AUROC", "digits", "the first checkpoint"):
        assert text in " ".join(shown.out.split())
    assert json.loads(checkpoints("show", "--json").out)["version"] == trained.version


def test_promote_and_rollback_move_the_champion_and_back(
    checkpoints: Run, registry_copy: Path, publish: Any, trained: Any
) -> None:
    version = publish(1)

    promoted = checkpoints("promote", trained.version, "--why", "I know better")
    assert (promoted.code, promoted.out) == (0, f"{trained.version} is champion.\n")
    assert (champion(registry_copy)["version"], champion(registry_copy)["why"]) == (trained.version, "I know better")

    back = checkpoints("rollback")
    assert (back.code, back.out) == (0, f"{version} is champion again; {trained.version} is not.\n")
    assert champion(registry_copy)["undone"][0]["version"] == trained.version
    assert checkpoints("rollback").code == 0
    over = checkpoints("rollback")
    assert over.code == 1
    assert over.err == (
        f"Error: The registry {registry_copy} has had no other champion than {trained.version}, so there is nothing to "
        "roll back to.\n"
    )


def test_compare_on_a_source_scores_both_on_the_same_rows(
    checkpoints: Run, publish: Any, trained: Any, dataset: Path
) -> None:
    version = publish(1)

    compared = checkpoints("compare", trained.version, version, "--source", str(dataset), "--metric", "macro_f1")
    record = json.loads(checkpoints("compare", trained.version, version, "--source", str(dataset), "--json").out)

    assert compared.code == 0
    assert "macro_f1 -0." in compared.out
    assert " rows won, " in compared.out
    assert f"lost  {dataset}/date=" in compared.out
    assert record["difference"]["high"] < 0
    assert record["champion"]["accuracy"] > record["challenger"]["accuracy"]


def test_add_says_what_became_of_the_checkpoint(
    checkpoints: Run, untrained: dict[str, Path], trained: Any, dataset: Path
) -> None:
    unjudged = checkpoints("add", str(untrained["additive"] / "model.safetensors"))
    judged = checkpoints("add", str(trained.folder), "--source", str(dataset))
    worse = checkpoints("add", str(untrained["additive"]), "--source", str(dataset))

    assert (unjudged.code, judged.code, worse.code) == (0, 0, 0)
    assert re.search(
        r"not judged +no --source was given; `attnlstm checkpoints promote \S+` makes it champion", unjudged.out
    )
    assert re.search(r"unchanged +it is champion already", judged.out)
    assert re.search(rf"added from +{re.escape(str(untrained['additive']))}\n", worse.out)
    assert re.search(r"rejected +its test accuracy is worse than the champion's", worse.out)


def test_export_says_what_it_wrote(checkpoints: Run, trained: Any, tmp_path: Path) -> None:
    graph = checkpoints("export", "--format", "onnx", "--out", str(tmp_path / "model.onnx"))
    hub = checkpoints("export", trained.version, "--format", "hub", "--out", str(tmp_path / "hub"))

    assert (graph.code, hub.code) == (0, 0)
    assert f"{tmp_path / 'model.onnx'}\n" in graph.out
    assert "ONNX Runtime gives the engine's scores within 1e-05" in graph.out
    assert "config.json, model.safetensors, README.md, card.json" in hub.out
    assert checkpoints("export", "--format", "pickle").code == 2


def test_prune_says_what_it_would_remove_and_then_removes_it(
    checkpoints: Run, registry_copy: Path, publish: Any, trained: Any
) -> None:
    versions = [trained.version, *(publish(seed) for seed in (1, 2, 3))]
    words = ("prune", "--keep", "1", "--history", "1")

    would, removed, nothing = checkpoints(*words, "--dry-run"), checkpoints(*words), checkpoints(*words)

    gone = sorted(set(versions) - {path.name for path in (registry_copy / "checkpoints").iterdir()})
    assert gone
    assert would.out.splitlines()[:-1] == [f"would remove  checkpoints/{version} (old)" for version in gone]
    assert removed.out.splitlines()[:-1] == [f"removed  checkpoints/{version} (old)" for version in gone]
    assert removed.out.splitlines()[-1].startswith(f"Removed {len(gone)} item")
    assert nothing.out == "Nothing to remove.\n"


@pytest.mark.parametrize("words", [("show", "v9"), ("promote", "v9"), ("compare", "champion", "v9")])
def test_unknown_version_is_refused(words: tuple[str, ...], checkpoints: Run) -> None:
    ended = checkpoints(*words)

    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("Error: There is no checkpoint 'v9': it is no version in ")


@pytest.mark.parametrize("words", [("list",), ("show",), ("rollback",), ("prune",), ("compare", "champion", "v1")])
def test_damaged_alias_is_told_by_every_command(words: tuple[str, ...], checkpoints: Run, registry_copy: Path) -> None:
    (registry_copy / "aliases/champion.json").write_text("{")

    ended = checkpoints(*words)

    assert ended.code == 1
    assert f"The alias file {registry_copy}/aliases/champion.json is damaged" in ended.err
    assert "Promote a version again to replace it." in ended.err
