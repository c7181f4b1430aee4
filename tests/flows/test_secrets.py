"""Credentials and the contents of rows stay out of all that a run leaves, in Prefect and in files.

What is planted is looked for in the whole of the server's database, and in every file of outputs and registries.
"""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect import Flow, State, get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.backfill import backfill
from flows.classify import classify
from flows.retrain import retrain
from storage.locations import Location

FLOWS: dict[str, Flow[..., Any]] = {"classify": classify, "backfill": backfill, "retrain": retrain}
KEY, SECRET = "AKIAPLANTED7", "wJalrPLANTED7"

# Logs and events go their ways in the background.
_PATIENCE_S = 60


@pytest.fixture
def database_after(prefect_database: Path) -> Callable[..., str]:
    """database_after(*states): everything that the server keeps, once it has the last line of the log of these runs."""

    def read(*states: State[Any]) -> str:
        deadline = time.monotonic() + _PATIENCE_S
        ids = {str(state.state_details.flow_run_id) for state in states}
        while True:
            with sqlite3.connect(f"file:{prefect_database}?mode=ro", uri=True) as database:
                ended = database.execute("SELECT flow_run_id FROM log WHERE message LIKE 'Finished in%'").fetchall()
                missing = ids - {run for (run,) in ended}
                if not missing:
                    return "\n".join(database.iterdump())
            assert time.monotonic() < deadline, f"no last line of the log of {missing}"
            time.sleep(0.2)

    return read


def files_below(*places: Location) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for place in places for file in place.files()}


# --- credentials in a parameter

REFUSED = [
    f"s3://{KEY}:{SECRET}@bucket/data",
    f"s3://{KEY}:{SECRET}/with+a/slash@bucket/data",
    f"s3://{KEY}:123/{SECRET}@bucket/data?region=eu-west-1",
    f"s3://{KEY}@bucket/data",
    f"abfs://account:{SECRET}@container/data",
    f"abfss://container@account.dfs.core.windows.net/data?enable_tls=true&client_secret={SECRET}",
    f"hdfs://user:{SECRET}@namenode:8020/data",
]
ACCEPTED = [
    "demo/sample",
    "/data/a@b:c/x?y=[z].parquet",
    "s3://bucket/data/date=2026-11-01?region=us-east-1&endpoint_override=127.0.0.1:9000&scheme=http",
    "s3://bucket/{scheduled:%Y}/someone@example.com/**/*.parquet",
    "gs://anonymous@bucket/data",
    "abfss://container@account.dfs.core.windows.net/data",
    "hdfs://user@namenode:8020/data",
    "file:///data/key=1/x",
]


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_server_refuses_a_uri_with_credentials_before_there_is_a_run(name: str) -> None:
    schema = parameter_schema(FLOWS[name]).model_dump()
    places = [key for key, value in schema["properties"].items() if "pattern" in value and "credentials" in str(value)]
    required = dict.fromkeys(schema["required"], "x")

    expected = ["source", "registry"] if name == "retrain" else ["source", "output", "registry", "checkpoint"]
    assert places == expected
    for place in places:
        for uri in ACCEPTED:
            validate(required | {place: uri}, schema, raise_on_error=True)
        for uri in REFUSED:
            with pytest.raises(ValidationError, match="a URI with credentials, which belong in the environment"):
                validate(required | {place: uri}, schema, raise_on_error=True)


def test_server_refuses_a_list_with_credentials() -> None:
    schema = parameter_schema(retrain).model_dump()

    with pytest.raises(ValidationError, match="a URI with credentials"):
        validate({"source": "x", "also": ["y", REFUSED[0]]}, schema, raise_on_error=True)


def test_command_refuses_credentials_before_there_is_a_run(attnlstm: Callable[..., Any], prefect_server: str) -> None:
    uri = REFUSED[1]
    ended = attnlstm("classify", uri, "out")
    with get_client(sync_client=True) as client:
        newest = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC)
    assert all(run.parameters["source"] != uri for run in newest if "source" in run.parameters)

    assert ended.code == 1
    assert ended.err.startswith("Error: source is ")
    assert "with credentials in it. Prefect would store them" in ended.err
    assert not [word for word in (KEY, SECRET) if word in ended.err + ended.out]


def test_run_that_was_given_credentials_fails_and_forgets_them(database_after: Callable[..., str]) -> None:
    uri = f"s3://{KEY}:{SECRET}@bucket/data"
    states: list[State[Any]] = [
        classify(uri, "out", return_state=True),
        backfill("data", uri, return_state=True),
        retrain("data", also=["more", uri], return_state=True),
    ]

    kept = database_after(*states)
    for state, name in zip(states, ("source", "output", "also"), strict=True):
        assert state.is_failed()
        assert f"CredentialsError: {name} is s3://bucket/data with credentials in it." in str(state.message)
        assert "They were stored with this run and are removed from it; replace them." in str(state.message)
    with get_client(sync_client=True) as client:
        runs = [client.read_flow_run(state.state_details.flow_run_id) for state in states]  # type: ignore[arg-type]
    assert runs[0].parameters["source"] == "s3://bucket/data"
    assert runs[2].parameters["also"] == ["more", "s3://bucket/data"]
    assert not [word for word in (KEY, SECRET) if word in kept]


# --- credentials in the environment


def test_credentials_in_the_environment_are_in_no_record(
    s3: Callable[[str], str],
    dataset: Path,
    database_after: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{SECRET}-token")
    source = Location.parse(s3("data"))
    for path in dataset.rglob("*.parquet"):
        (source / path.relative_to(dataset).as_posix()).write_bytes(path.read_bytes())
    registry, out = s3("registry"), s3("out")

    trained: State[Any] = retrain(s3("data"), registry=registry, preset="reference", epochs=1, return_state=True)
    version = trained.result()["version"]
    options: dict[str, Any] = {"registry": registry, "checkpoint": version, "return_state": True}
    scored = classify(s3("data"), out, label_column="label", **options)
    missing = classify(s3("data").replace("s3://", "s3://no-such-"), out, **options)

    assert [state.type.value for state in (trained, scored, missing)] == ["COMPLETED", "COMPLETED", "FAILED"]
    kept = database_after(trained, scored, missing)
    files = files_below(Location.parse(registry), Location.parse(out))
    assert len([name for name in files if name.endswith((".parquet", ".json", ".safetensors", ".md"))]) > 10
    for word in (KEY, SECRET):
        assert word not in kept
        assert word not in caplog.text
        assert [name for name, content in files.items() if word.encode() in content] == []


# --- what is in the rows

IN_ROWS = "PLANTEDINAROW7"


@pytest.fixture
def telling(dataset: Path, tmp_path: Path) -> Path:
    """A dataset whose tokens, ids, labels, groups and kept column hold a word, with rows of every kind of error.

    Beside it, a file that is cut short and one whose pages are damaged.
    """
    table = pq.read_table(dataset / "date=2026-11-01/part-0.parquet", partitioning=None)
    count = len(table)
    tokens: list[list[int | None] | None] = [list(IN_ROWS.encode()) for _ in range(count)]
    tokens[:4] = [None, [], [1, None, 2], [70_707_070, 3]]
    telling = pa.table(
        {
            "id": [f"{IN_ROWS}-{row}" for row in range(count)],
            "tokens": pa.array(tokens, pa.list_(pa.int64())),
            "label": [f"{IN_ROWS}-label" if row % 7 == 0 else "digits" for row in range(count)],
            "group": [f"{IN_ROWS}-{row}" for row in range(count)],
            "origin": [f"{IN_ROWS}-{row}" for row in range(count)],
        }
    )
    folder = tmp_path / "telling"
    folder.mkdir()
    pq.write_table(telling, folder / "whole.parquet")
    whole = (folder / "whole.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    damaged = np.frombuffer(whole, np.uint8).copy()
    start = pq.read_metadata(folder / "whole.parquet").row_group(0).column(1).dictionary_page_offset
    damaged[start : start + 64] ^= 0xFF
    (folder / "damaged.parquet").write_bytes(damaged.tobytes())
    return folder


def test_contents_of_rows_are_in_no_log_artifact_event_or_manifest_nor_in_a_report_without_rows(
    telling: Path,
    rescore: Callable[..., Any],
    database_after: Callable[..., str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = rescore(tmp_path / "output", telling, keep=["origin"], max_tokens=5, long_rows="error", report_rows=0)

    assert run.manifest.totals["errors"].keys() == {
        "longer than 5 tokens",
        "a token id outside 0..255",
        "a null among the tokens",
        "no tokens",
        "tokens are null",
    }
    assert {failure.name for failure in run.manifest.failures} == {"cut.parquet", "damaged.parquet"}
    kept = database_after(run.state)
    records = files_below(Location.parse(tmp_path / "output"))
    records = {name: content for name, content in records.items() if not name.endswith(".parquet")}
    assert {"html", "json"} <= {name.rpartition(".")[2] for name in records}
    for word in (IN_ROWS, "70707070", "70,707,070"):
        assert word not in kept
        assert word not in caplog.text
        assert [name for name, content in records.items() if word.encode() in content] == []


def test_failed_training_tells_nothing_of_the_rows(
    telling: Path, database_after: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state: State[Any] = retrain(str(telling), registry=str(tmp_path / "registry"), epochs=1, return_state=True)

    assert state.is_failed()
    assert IN_ROWS not in database_after(state)
    assert IN_ROWS not in caplog.text
