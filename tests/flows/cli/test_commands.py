"""What is said without Prefect: what a flow run would have said, and only where there is nothing to do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.backfill import backfill
from flows.classify import classify
from flows.cli.commands import backfill_nothing, classify_nothing
from flows.cli.server import _may_be_configured
from flows.settings import BackfillOptions, ClassifyOptions
from storage.errors import SourceError
from storage.locations import Location
from storage.output.manifests import read_manifest

LOOKS: list[tuple[Callable[..., Any], Any]] = [(classify_nothing, ClassifyOptions), (backfill_nothing, BackfillOptions)]
COMMAND = "import sys; from flows.cli.app import main\ntry: main()\nfinally: print('LOADED', *sys.modules)"


@pytest.fixture
def asked(trained: Any, dataset_copy: Path, output_copy: Path) -> dict[str, Any]:
    """What to ask for so that there is nothing to do: the scored output, of an input that may be changed."""
    record = json.loads((output_copy / "_dataset.json").read_text())
    (output_copy / "_dataset.json").write_text(json.dumps(record | {"source": str(dataset_copy)}))
    return {"source": str(dataset_copy), "output": str(output_copy), "registry": str(trained.registry)}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """Runs a command in a process of its own, in an empty folder, where no server is configured but by `variables`."""

    def run_command(*words: str, **variables: str) -> Any:
        (tmp_path / "empty").mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment = kept | {"PREFECT_HOME": str(tmp_path / "home"), "PREFECT_CLIENT_MAX_RETRIES": "0"} | variables
        return subprocess.run(
            [sys.executable, "-c", COMMAND, *words],
            cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run_command


def _names(folder: Path | str) -> set[str]:
    return {path.name for path in (Path(folder) / "runs").glob("*.json")}


def test_run_with_nothing_to_do_leaves_the_manifest_that_a_flow_run_leaves(
    asked: dict[str, Any], rescore: Callable[..., Any]
) -> None:
    before = _names(asked["output"])

    manifest = classify_nothing(ClassifyOptions(**asked, workers=3))

    assert manifest is not None
    assert _names(asked["output"]) - before == {f"{manifest.run_id}.json"}
    assert read_manifest(Location.parse(asked["output"]), manifest.run_id) == manifest
    by_flow = rescore(Path(asked["output"]), Path(asked["source"]), workers=3).manifest
    own = {name: getattr(manifest, name) for name in ("run_id", "run_name", "started", "ended")}
    assert replace(by_flow, **own) == manifest
    assert manifest.run_name.rpartition(" ")[0][:-6] == by_flow.run_name.rpartition(" ")[0][:-6]  # but for the time


def test_run_says_what_lies_in_the_output_that_its_input_does_not_account_for(asked: dict[str, Any]) -> None:
    first = min(Path(asked["source"]).rglob("*.parquet"))
    name = str(first.relative_to(asked["source"]))
    first.unlink()
    manifest = classify_nothing(ClassifyOptions(**asked))
    assert manifest is not None
    assert manifest.notes == (
        "2 files in the output that no input accounts for are read with the others, such as "
        f"attention/{name} (input is gone); attnlstm prune shows and removes them",
    )


def test_run_whose_rows_have_more_errors_than_allowed_is_left_to_the_flow_which_fails_again(
    asked: dict[str, Any],
) -> None:
    assert classify_nothing(ClassifyOptions(**asked, max_errors="8")) is not None
    before = _names(asked["output"])
    assert classify_nothing(ClassifyOptions(**asked, max_errors="7")) is None
    assert _names(asked["output"]) == before

    state: Any = classify(**asked, max_errors="7", return_state=True)

    assert state.is_failed()
    assert (
        "shards are up to date, and 8 rows of them have no prediction, more than max_errors (7) allows" in state.message
    )
    assert state.result(raise_on_failure=False)["state"] == "failed"


def _remove_predictions(asked: dict[str, Any]) -> None:
    (Path(asked["output"]) / "predictions/date=2026-11-04/part-0.parquet").unlink()


def _damage_input(asked: dict[str, Any]) -> None:
    (Path(asked["source"]) / "date=2026-11-04/part-0.parquet").write_bytes(b"no Parquet at all")


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a shard is missing": _remove_predictions,
    "a file can't be read": _damage_input,
    "all is asked for": lambda asked: asked.update(mode="all"),
    "the output is new": lambda asked: asked.update(output=asked["output"] + "-new"),
    "a cluster is named": lambda asked: asked.update(runner="dask", address="tcp://127.0.0.1:9"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("look", "options"), LOOKS)
def test_whatever_is_to_be_done_or_wrong_is_left_for_the_flow(
    change: str, look: Callable[..., Any], options: Any, asked: dict[str, Any]
) -> None:
    CHANGES[change](asked)

    assert look(options(**asked)) is None
    assert not Path(asked["output"]).exists() or len(_names(asked["output"])) == 1


def test_what_a_plan_raises_is_raised_at_once(asked: dict[str, Any]) -> None:
    for look, options in LOOKS:
        with pytest.raises(SourceError, match="nowhere does not exist"):
            look(options(**asked | {"source": "nowhere"}))


@pytest.mark.parametrize("options", [{}, {"newest_first": True, "start": "2026-11-02", "end": "2026-11-04"}])
@pytest.mark.parametrize("dry_run", [True, False])
def test_backfill_with_nothing_to_do_or_to_plan_ends_as_the_flow_does(
    options: dict[str, Any], dry_run: bool, asked: dict[str, Any]
) -> None:
    before = len(_names(asked["output"]))

    ending = backfill_nothing(BackfillOptions(**asked, **options, dry_run=dry_run))

    assert ending is not None
    num_runs = sum(row["state"] == "Completed" for row in ending.table)
    assert len(_names(asked["output"])) == before + num_runs
    assert (num_runs == 0) == dry_run
    state: Any = backfill(**asked, **options, dry_run=dry_run, return_state=True)
    own = {} if dry_run else {"message": "", "run_id": ""}
    table = [row | own for row in state.result()]
    assert (ending.is_good, ending.message) == (state.is_completed(), state.message)
    assert [row | own for row in ending.table] == table


@pytest.mark.parametrize("command", ["classify", "backfill"])
def test_command_with_nothing_to_do_starts_neither_prefect_nor_torch(
    command: str, run: Callable[..., Any], asked: dict[str, Any], tmp_path: Path
) -> None:
    done = run(command, asked["source"], asked["output"], "--registry", asked["registry"])

    text, _, loaded = done.stdout.partition("LOADED")
    assert (done.returncode, done.stderr) == (0, "")
    assert {"classify": "nothing to do: all 4 shards", "backfill": "4 of 4 partitions completed."}[command] in text
    assert {"prefect", "torch", "polars"}.isdisjoint(loaded.split())
    assert list((tmp_path / "home").iterdir()) == []


def test_configured_server_gets_a_run_all_the_same(run: Callable[..., Any], asked: dict[str, Any]) -> None:
    words = ("classify", asked["source"], asked["output"], "--registry", asked["registry"])

    done = run(*words, PREFECT_API_URL="http://127.0.0.1:9/api")

    assert done.returncode == 1
    assert "No Prefect server answers at http://127.0.0.1:9/api." in done.stderr
    assert len(_names(asked["output"])) == 1


@pytest.mark.parametrize(
    ("variables", "files", "expected"),
    [
        ({}, {}, False),
        ({}, {"home/profiles.toml": '[profiles.own]\nPREFECT_LOGGING_LEVEL = "INFO"'}, False),
        ({}, {".env": "COLOUR=red", "pyproject.toml": "[project]\ndependencies = ['prefect']"}, False),
        ({"PREFECT_API_URL": "http://there/api"}, {}, True),
        ({"PREFECT_API_URL": ""}, {"home/profiles.toml": "[profiles.own]\nPREFECT_API_URL = 'x'"}, False),
        ({"prefect_api_url": "http://there/api"}, {}, True),
        ({"PREFECT_PROFILE": "local"}, {}, True),
        ({}, {"home/profiles.toml": "[profiles.own]\nPREFECT_API_URL = 'x'"}, True),
        ({}, {".env": "PREFECT_API_URL=x"}, True),
        ({}, {"prefect.toml": "[api]"}, True),
        ({}, {"pyproject.toml": "[tool.prefect.api]\nurl = 'x'"}, True),
    ],
    ids=str,
)
def test_prefect_is_asked_for_a_server_where_something_may_name_one(
    variables: dict[str, str], files: dict[str, str], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    for name, value in ({"PREFECT_HOME": str(tmp_path / "home")} | variables).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "home").mkdir()
    for file, text in files.items():
        (tmp_path / file).write_text(text)

    assert _may_be_configured() == expected
