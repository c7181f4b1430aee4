"""The command line: what users meet when all is well, and the one message when it is not."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

Run = Callable[..., Any]
COMMAND = [sys.executable, "-c", "from flows.cli.app import main; main()"]


@pytest.fixture
def classify(attnlstm: Run, untrained: dict[str, Path], tmp_path: Path) -> Run:
    """Runs `attnlstm classify SOURCE` with a checkpoint that is there, into an output that is not."""

    def run(source: Path, *words: str) -> Any:
        options = {"--checkpoint": str(untrained["additive"])}
        given = [word for name, value in options.items() if name not in words for word in (name, value)]
        return attnlstm("classify", str(source), str(tmp_path / "output"), *given, *words)

    return run


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., None]:
    """Checks that a command ended with one message that holds these texts, and left nothing behind."""

    def check(ended: Any, *texts: str, code: int = 1) -> None:
        assert ended.code == code, ended
        assert ended.out == ""
        assert ended.err.startswith("Error: ")
        assert len(ended.err.splitlines()) == 1, ended.err
        for text in texts:
            assert text in ended.err
        for name in ("output", "registry"):
            assert not (tmp_path / name).exists(), f"{name} was left behind"

    return check


def test_classify_prints_a_summary_and_the_second_time_that_there_is_nothing_to_do(
    attnlstm: Run, dataset: Path, trained: Any, tmp_path: Path
) -> None:
    words = ["classify", str(dataset), str(tmp_path / "output"), "--registry", str(trained.registry)]
    words += ["--label-column", "label", "--keep", "origin", "number", "--mode", "missing", "--workers", "1"]

    first, second = attnlstm(*words), attnlstm(*words)

    assert (first.code, first.err) == (0, "")
    lines = {line.split("  ")[0]: line for line in first.out.splitlines()}
    assert "420 in 4 shards (0 more were up to date)" in lines["rows"]
    assert "no tokens 4, tokens are null 4" in lines["errors"]
    assert "12,018 in " in lines["tokens"]
    assert "(fused-cpu on cpu)" in lines["tokens"]
    assert "digits " in lines["predictions"]
    assert "accuracy 0.9" in lines["against labels"]
    assert trained.version in lines["checkpoint"]
    assert str(tmp_path / "output") in lines["output"]
    assert f"{tmp_path}/output/runs/" in lines["manifest"]
    assert (second.code, second.err) == (0, "")
    assert "nothing to do: all 4 shards are up to date" in second.out


def test_retrain_prints_what_was_learned_and_checkpoints_list_shows_it(
    attnlstm: Run, dataset: Path, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"

    trained = attnlstm("retrain", str(dataset), "--registry", str(registry), "--epochs", "6", "--seed", "3")
    listed = attnlstm("checkpoints", "list", "--registry", str(registry))
    as_json = attnlstm("checkpoints", "list", "--registry", str(registry), "--json")

    version = next((registry / "checkpoints").iterdir()).name
    assert (trained.code, trained.err) == (0, "")
    assert "6 epochs in " in trained.out
    assert f"{version} is champion: the first checkpoint, test accuracy " in trained.out
    assert listed.code == as_json.code == 0
    assert version in listed.out
    assert "champion since " in listed.out
    (row,) = json.loads(as_json.out)
    assert (row["version"], row["champion"], row["source"]) == (version, True, str(dataset))


def test_backfill_prints_how_many_dates_were_scored(
    attnlstm: Run, dataset: Path, untrained: dict[str, Path], tmp_path: Path
) -> None:
    words = ("backfill", str(dataset), str(tmp_path / "output"), "--checkpoint", str(untrained["additive"]))

    ended = attnlstm(*words, "--start", "2026-11-03", "--end", "2026-11-04")

    assert (ended.code, ended.err) == (0, "")
    assert "date=2026-11-04  Completed  " in ended.out
    assert ended.out.endswith("1 of 2 partitions completed, 1 no input.\n")


def test_classify_with_a_broken_file_ends_failed_and_names_it(
    classify: Run, dataset_copy: Path, tmp_path: Path
) -> None:
    (dataset_copy / "date=2026-11-02" / "part-0.parquet").write_bytes(b"no Parquet at all")

    ended = classify(dataset_copy)

    assert ended.code == 1
    assert "315 in 3 shards" in ended.out
    assert "failed  date=2026-11-02/part-0.parquet: not a whole Parquet file" in ended.out
    assert "Traceback" not in ended.out + ended.err
    assert len(list((tmp_path / "output" / "predictions").rglob("*.parquet"))) == 3


def test_missing_source_is_refused(classify: Run, tmp_path: Path, refused: Callable[..., None]) -> None:
    source = tmp_path / "nowhere"
    refused(classify(source), f"The source {source} does not exist. Check the path or URI.")


def test_empty_folder_is_refused(classify: Run, tmp_path: Path, refused: Callable[..., None]) -> None:
    source = tmp_path / "empty"
    source.mkdir()
    refused(classify(source), f"The source {source} holds no Parquet files", "Check the path")


def test_text_file_named_parquet_is_refused(classify: Run, tmp_path: Path, refused: Callable[..., None]) -> None:
    source = tmp_path / "text.parquet"
    source.write_text("This is a letter, not a table.\n")
    refused(classify(source), f"{source}: not a whole Parquet file", "another format, or cut short")


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (("--tokens-column", "bytes"), ("column 'bytes'", "is missing; the file has: id (string), tokens (binary)")),
        (("--tokens-column", "number"), ("column 'number' has type int64", "binary, string, or a list of integers")),
        (("--label-column", "truth"), ("column 'truth'", "is missing; the file has: id (string)")),
        (("--keep", "colour"), ("column 'colour'", "is missing; the file has: id (string)")),
        (("--keep", "score"), ("score, which the predictions have as a column of their own", "Rename")),
        (("--checkpoint", "nonesuch"), ("There is no checkpoint 'nonesuch'",)),
        (("--device", "cuda"), ("device is 'cuda'", "no CUDA device here; use 'auto' or 'cpu'")),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_request_that_does_not_fit_is_refused(
    words: tuple[str, ...],
    texts: tuple[str, ...],
    classify: Run,
    dataset: Path,
    refused: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(classify(dataset, *words), *texts)


def test_registry_without_a_champion_says_how_to_get_one(
    attnlstm: Run, dataset: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    words = (str(dataset), str(tmp_path / "output"), "--registry", str(tmp_path / "registry"))
    refused(attnlstm("classify", *words), "has no champion", f"attnlstm retrain SOURCE --registry {tmp_path}/registry")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_checkpoint_is_refused(
    name: str, classify: Run, dataset: Path, untrained: dict[str, Path], tmp_path: Path, refused: Callable[..., None]
) -> None:
    folder = Path(shutil.copytree(untrained["additive"], tmp_path / "damaged"))
    (folder / name).write_bytes((folder / name).read_bytes()[:-50])
    refused(
        classify(dataset, "--checkpoint", str(folder)),
        f"checkpoint {folder} cannot be used: {name}",
        "Restore the file or take another checkpoint.",
    )


def test_one_class_only_is_refused(attnlstm: Run, tmp_path: Path, refused: Callable[..., None]) -> None:
    source = tmp_path / "one.parquet"
    pq.write_table(pa.table({"tokens": [b"a", b"b"], "label": ["spam", "spam"]}), source)
    ended = attnlstm("retrain", str(source), "--registry", str(tmp_path / "registry"))
    refused(ended, f"The source {source} has only 'spam' in column 'label'; training needs two classes or more.")


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("truth", "is missing; the file has: id (string), tokens (binary), label (string)"),
        ("tokens", "has type binary; a label must be a string or an integer"),
    ],
)
def test_label_column_that_cannot_be_learned_is_refused(
    column: str, text: str, attnlstm: Run, dataset: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    words = (str(dataset), "--registry", str(tmp_path / "registry"), "--label-column", column)
    refused(attnlstm("retrain", *words), str(dataset), f"column '{column}'", text)


def test_backfill_that_ends_before_it_starts_is_refused(
    attnlstm: Run, dataset: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    words = (str(dataset), str(tmp_path / "output"), "--start", "2026-11-04", "--end", "2026-11-01")
    refused(attnlstm("backfill", *words), "ends with date=2026-11-01, before it starts with 2026-11-04. Swap start and")


def test_verbose_shows_the_traceback_before_the_message(classify: Run, tmp_path: Path) -> None:
    ended = classify(tmp_path / "nowhere", "--verbose")

    assert ended.code == 1
    assert "Traceback (most recent call last):" in ended.err
    assert ended.err.splitlines()[-1].startswith("Error: The source ")


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
        (("shrink", "source"), 'Unknown command "shrink"'),
    ],
    ids=lambda value: " ".join(value[:1] + value[-2:]) if isinstance(value, tuple) else "",
)
def test_wrong_use_ends_with_2_and_starts_no_run(
    words: tuple[str, ...], text: str, attnlstm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    ended = attnlstm(*words)

    assert ended.code == 2
    assert ended.out == ""
    assert text in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []


def test_sample_is_written_and_summed_up(attnlstm: Run, tmp_path: Path) -> None:
    ended = attnlstm("sample", str(tmp_path / "sample"), "--rows", "80", "--fragment-bytes", "64", "--days", "2")

    assert ended.code == 0
    assert "80 fragments of 64 bytes in 2 files under " in ended.out
    assert sum(pq.read_metadata(path).num_rows for path in (tmp_path / "sample").rglob("*.parquet")) == 80


def test_help_lists_the_commands_without_loading_prefect_or_torch() -> None:
    show = "import sys; from flows.cli import app as cli; sys.argv[1:] = ['--help']\n"
    show += "try: cli.main()\nfinally: print('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)

    help_text, _, loaded = done.stdout.partition("LOADED")
    for name in ("sample", "retrain", "classify", "backfill", "checkpoints", "demo", "--verbose"):
        assert name in help_text
    assert "cyclopts" in loaded.split()
    assert not {"prefect", "torch", "pyarrow", "polars"} & set(loaded.split())


def test_version_is_that_of_the_distribution(attnlstm: Run) -> None:
    import importlib.metadata

    assert attnlstm("--version").out.strip() == importlib.metadata.version("attnlstm")


def test_server_that_is_not_there_is_named_with_what_to_do(
    classify: Run, dataset: Path, refused: Callable[..., None]
) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        refused(
            classify(dataset), "No Prefect server answers at http://127.0.0.1:9/api. ", "config unset PREFECT_API_URL"
        )


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
    assert (tmp_path / "prefect" / "prefect.db").exists()
    assert len(list((tmp_path / "output" / "predictions").rglob("*.parquet"))) == 4
