"""The command line: what users meet when all is well, and the one message when it is not."""

import importlib.metadata
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from builders import COMMAND
from flows.cli import app
from flows.cli.app import error_message
from storage.errors import SourceError

Run = Callable[..., Any]
NOWHERE = "http://127.0.0.1:9/api"  # where nobody listens
NO_SERVER = f"No Prefect server answers at {NOWHERE}. Start it, or "


@pytest.fixture
def classify(attnlstm: Run, untrained: dict[str, Path], tmp_path: Path) -> Run:
    """Runs `attnlstm classify SOURCE` with a checkpoint that is there, into an output that is not."""
    checkpoint = ("--checkpoint", str(untrained["additive"]))
    return lambda source, *words: attnlstm("classify", str(source), str(tmp_path / "output"), *checkpoint, *words)


def assert_refused(ended: Any, folder: Path, *texts: str) -> None:
    """The command ended with one message that holds these texts, and left nothing behind in the folder."""
    assert (ended.code, ended.out) == (1, ""), ended
    assert ended.err.startswith("Error: ")
    assert len(ended.err.splitlines()) == 1, ended.err
    assert [text for text in texts if text not in ended.err] == [], ended.err
    assert [name for name in ("output", "registry") if (folder / name).exists()] == []


def test_classify_with_a_broken_file_ends_failed_and_names_it(classify: Run, dataset_copy: Path) -> None:
    (dataset_copy / "date=2026-11-02" / "part-0.parquet").write_bytes(b"no Parquet at all")

    ended = classify(dataset_copy)

    assert ended.code == 1
    assert "315 in 3 shards" in ended.out
    assert "failed  date=2026-11-02/part-0.parquet: not a whole Parquet file" in ended.out
    assert "Traceback" not in ended.out + ended.err


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ("plan {folder}/nowhere", ("The source {folder}/nowhere does not exist. Check the path or URI.",)),
        ("plan {data} --keep score", ("score, which the output has as a column of its own", "Rename")),
        ("plan {data} --checkpoint nonesuch", ("There is no checkpoint 'nonesuch'",)),
        ("plan {data} --checkpoint champion", ("has no champion", "attnlstm retrain SOURCE --registry ")),
        ("verify {data}", ("output is no output of attnlstm: it has no _dataset.json. Check the path.",)),
        ("prune {data}", ("output is no output of attnlstm: it has no _dataset.json. Check the path.",)),
        ("classify {folder}/letter.parquet", ("letter.parquet: not a whole Parquet file", "another format, or cut")),
        ("plan {folder}/datta", ("Did you mean 'data'?",)),
        ("plan {data} --checkpoint champoin", ("There is no checkpoint 'champoin'", "Did you mean 'champion'?")),
        ("classify {data} --tokens-column tokns", ("column 'tokns'", "is missing; the file has: id", "mean 'tokens'?")),
    ],
)
def test_request_that_does_not_fit_is_refused(
    words: str,
    texts: tuple[str, ...],
    attnlstm: Run,
    dataset: Path,
    untrained: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letter.parquet").write_text("This is a letter, not a table.\n")
    (tmp_path / "data").mkdir()
    command, source, *others = words.format(folder=tmp_path, data=dataset).split()
    checkpoint = (
        () if command == "prune" or others[:1] == ["--checkpoint"] else ("--checkpoint", str(untrained["additive"]))
    )

    ended = attnlstm(command, source, "output", *checkpoint, *others)

    assert_refused(ended, tmp_path, *(text.format(folder=tmp_path) for text in texts))


def test_run_that_fails_as_a_whole_ends_with_one_message_and_with_verbose_its_traceback(
    classify: Run, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    assert_refused(classify(dataset, "--device", "cuda"), tmp_path, "device is 'cuda'", "use 'auto' or 'cpu'")
    verbose = classify(tmp_path / "nowhere", "--verbose")

    assert verbose.code == 1
    assert "Traceback (most recent call last):" in verbose.err
    assert verbose.err.splitlines()[-1].startswith("Error: The source ")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SourceError("nothing there"), "nothing there"),
        (ValueError("not so"), "not so"),
        (OSError(28, "No space left on device", "out/a.parquet"), "No space left on device: out/a.parquet"),
        (OSError("connection lost"), "connection lost"),
        (httpx.ConnectError("refused"), NO_SERVER),
        (RuntimeError("Failed to reach API at x"), NO_SERVER),
        (KeyError("k"), "KeyError: 'k'\nThis was not foreseen; --verbose shows the traceback."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_told_in_words_and_unforeseen_ones_by_their_kind(error: Exception, message: str) -> None:
    with temporary_settings({PREFECT_API_URL: NOWHERE}):
        assert error_message(error).startswith(message)


def test_server_that_is_not_there_is_named_with_what_to_do(classify: Run, dataset: Path, tmp_path: Path) -> None:
    with temporary_settings({PREFECT_API_URL: NOWHERE}):
        ended = classify(dataset)
    assert_refused(ended, tmp_path, NO_SERVER, "unset PREFECT_API_URL")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("classify", "source", "output", "--colour", "red"), "Unknown option: --colour"),
        (("classify", "source"), "--output requires an argument"),
        (("classify", "source", "output", "--workers", "0"), "greater than or equal to 1"),
        (("classify", "source", "output", "--save-attention", "top:0"), "--save-attention"),
        (("classify", "source", "output", "--mode", "sometimes"), "--mode"),
        (("backfill", "source", "output", "--parallel", "0"), "greater than or equal to 1"),
        (("retrain", "source", "--epochs", "0"), "greater than or equal to 1"),
        (("verify", "source", "output", "--deep", "-1"), "greater than or equal to 0"),
        (("shrink", "source"), 'Unknown command "shrink"'),
        (("clasify", "source"), 'Did you mean "classify"?'),
        (("classify", "source", "output", "--modee", "all"), "Did you mean --mode?"),
        (("classify", "source", "output", "--mode", "stal"), 'Did you mean "stale"?'),
    ],
    ids=lambda value: " ".join(value[:1] + value[-2:]) if isinstance(value, tuple) else "",
)
def test_wrong_use_ends_with_2_and_starts_no_run(
    words: tuple[str, ...], text: str, attnlstm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    ended = attnlstm(*words)

    assert (ended.code, ended.out) == (2, "")
    assert text in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []


def test_quiet_prints_errors_only(attnlstm: Run, dataset: Path, untrained: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = ("--checkpoint", str(untrained["additive"]), "--quiet")

    done = attnlstm("plan", str(dataset), str(tmp_path / "output"), *checkpoint, "--json")
    failed = attnlstm("plan", str(tmp_path / "nowhere"), str(tmp_path / "output"), *checkpoint)

    assert (done.code, done.out, done.err) == (0, "", "")
    assert (failed.code, failed.out) == (1, "")
    assert failed.err.startswith("Error: The source ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_the_shell_reads_and_that_knows_commands_options_and_values(
    shell: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert app._run(["completion", shell]) == 0

    script = capfd.readouterr().out
    assert [
        word for word in ("backfill", "checkpoints", "max-errors", "fused-cpu", "quiet") if word not in script
    ] == []
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "shown", "not_loaded"),
    [
        (["--help"], "backfill ", {"prefect", "torch", "pyarrow", "polars"}),
        (["--version"], importlib.metadata.version("attnlstm"), {"prefect", "torch", "pyarrow", "polars"}),
        (["verify", "--help"], "--deep", {"prefect", "torch"}),
        (["serve", "--help"], "0 3 * * 0", {"prefect", "torch"}),
        (["classify", "--help"], "--max-errors", {"prefect", "torch", "polars"}),
        (["checkpoints", "prune", "--help"], "--history", {"prefect", "torch", "polars"}),
        (["checkpoints", "list", "--registry", "{registry}"], "champion since", {"prefect", "torch", "polars"}),
        (
            ["checkpoints", "compare", "champion", "champion", "--registry", "{registry}"],
            "accuracy",
            {"prefect", "torch"},
        ),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_looking_loads_no_more_than_it_needs(words: list[str], shown: str, not_loaded: set[str], trained: Any) -> None:
    command = [sys.executable, "-c", "import sys; from flows.cli import app as cli\n"]
    command[-1] += "try: cli.main()\nfinally: print('LOADED', *sys.modules)"
    words = [word.format(registry=trained.registry) for word in words]

    done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)

    text, _, loaded = done.stdout.partition("LOADED")
    assert shown in text
    assert "cyclopts" in loaded.split()
    assert not_loaded & set(loaded.split()) == set()


@pytest.mark.slow
def test_commands_bring_a_prefect_server_of_their_own_where_there_is_none(
    tmp_path: Path, dataset: Path, untrained: dict[str, Path]
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment["PREFECT_HOME"] = str(tmp_path / "prefect")
    words = ["classify", str(dataset), "output", "--checkpoint", str(untrained["additive"])]

    done = subprocess.run(
        COMMAND + words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "420 in 4 shards" in done.stdout
    with closing(sqlite3.connect(tmp_path / "prefect" / "prefect.db")) as database:  # it recorded all before it ended
        states = database.execute("SELECT DISTINCT state_type FROM task_run").fetchall()
    assert states == [("COMPLETED",)]
    assert not (tmp_path / "prefect" / "memo_store.toml").exists()  # of types of blocks, which take seconds
    assert len(list((tmp_path / "output" / "predictions").rglob("*.parquet"))) == 4
