"""The study as a user meets it: one command, tables and a picture, and a killed one that goes on."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import attnlstm.study
from flows.study import study

NUM_VARIANTS = 5
TINY = {"seeds": 2, "epochs": 1, "rows": 200, "threads": 1}


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that was not disturbed. Read only."""
    out = tmp_path_factory.mktemp("study") / "out"
    assert study([str(dataset)], out_folder=str(out), **TINY) == 0
    return out


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled with what is trained: variant and seed."""
    names: list[str] = []
    train_variant = attnlstm.study.train_variant

    def noted(variant: Any, rows: Any, settings: Any) -> Any:
        names.append(f"{variant}-{settings.seed}")
        return train_variant(variant, rows, settings)

    monkeypatch.setattr(attnlstm.study, "train_variant", noted)
    return names


def figures(out: Path) -> dict[str, Any]:
    """What the study found, without what the clock said."""
    record: dict[str, Any] = json.loads((out / "study.json").read_text())
    for found in record["trainings"].values():
        for outcome in found:
            del outcome["seconds"]
    return record


def test_tables_picture_and_every_training_are_written(finished: Path, dataset: Path) -> None:
    names = sorted(path.name for path in (finished / "trainings" / dataset.name).iterdir())
    assert len(names) == 2 * NUM_VARIANTS
    assert "multihead_published-1.json" in names
    record = figures(finished)
    assert [len(found) for found in record["trainings"].values()] == [2 * NUM_VARIANTS]
    text = (finished / "study.md").read_text()
    for sentence in record["verdict"].values():
        assert sentence in text
    assert f"- {dataset.name}: 200 rows (" in text
    assert "](study.svg)" in text
    assert (finished / "study.svg").read_text().startswith("<?xml")


def test_a_killed_study_goes_on_where_it_was_and_ends_with_the_same_figures(
    finished: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_variant, trainings = attnlstm.study.train_variant, []

    def stop_in_the_fourth(*args: Any) -> Any:
        trainings.append(args[0])
        if len(trainings) == 4:
            raise KeyboardInterrupt
        return train_variant(*args)

    monkeypatch.setattr(attnlstm.study, "train_variant", stop_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        study([str(dataset)], out_folder=str(tmp_path), **TINY)
    assert not (tmp_path / "study.json").exists()
    study([str(dataset)], out_folder=str(tmp_path), **TINY)
    assert len(trainings) == 2 * NUM_VARIANTS + 1
    assert figures(tmp_path) == figures(finished)
    assert (tmp_path / "study.svg").read_bytes() == (finished / "study.svg").read_bytes()


def test_a_finished_study_trains_only_what_is_new_damaged_or_of_other_settings(
    finished: Path, dataset: Path, tmp_path: Path, trained: list[str]
) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    file = out / "trainings" / dataset.name / "mean-1.json"
    file.write_bytes(file.read_bytes()[:100])
    study([str(dataset)], out_folder=str(out), **TINY)
    assert trained == ["mean-1"]
    trained.clear()
    study([str(dataset)], out_folder=str(out), **{**TINY, "seeds": 3})
    assert trained == [f"{variant}-2" for variant in attnlstm.study.VARIANTS]
    trained.clear()
    study([str(dataset)], out_folder=str(out), **{**TINY, "rows": 190})
    assert len(trained) == 2 * NUM_VARIANTS


def test_json_prints_the_record(finished: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study([str(dataset)], out_folder=str(finished), **TINY, as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads((finished / "study.json").read_text())


def test_sources_of_one_name_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two sources are named 'set'; their last parts tell sets apart"):
        study([str(tmp_path / "a" / "set"), str(tmp_path / "b" / "set.parquet")], out_folder=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["matplotlib"], "a study needs matplotlib, which is not installed here: pip install 'attnlstm[study]'"),
        (["matplotlib", "scipy"], "a study needs matplotlib and scipy, which are not installed here"),
    ],
)
def test_a_missing_library_is_said_before_anything_is_read(
    missing: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=re.escape(message)):
        study([str(tmp_path / "nowhere")], out_folder=str(tmp_path / "out"))


def test_the_command_takes_several_sources_and_refuses_a_single_seed(
    attnlstm: Callable[..., Any], finished: Path, dataset: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(dataset, tmp_path / "other")
    out = shutil.copytree(finished, tmp_path / "out")
    options = ("--out", str(out), "--epochs", "1", "--rows", "200", "--threads", "1")
    ended = attnlstm("study", str(dataset), str(other), *options, "--seeds", "2")
    assert (ended.code, ended.err) == (0, "")
    assert f"| pooling | {dataset.name} | other |" in ended.out
    assert f"The study: {out}/study.md" in ended.out
    refused = attnlstm("study", str(dataset), *options, "--seeds", "1")
    assert refused.code == 2


def test_a_study_does_not_load_prefect() -> None:
    code = "import sys; from flows.cli import app; from flows import study; print({'prefect', 'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
