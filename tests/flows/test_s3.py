"""The flows on S3, against moto's server: the same output as on a local disk, whatever happens on the way."""

import functools
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import State

import flows.classify
import storage
from attnlstm.checkpoint import from_files
from builders import make_champion, scored_files
from flows.classify import classify
from flows.cli import DONE
from flows.cli.outputs import verify
from flows.orchestration.task_runs import is_transient
from flows.retrain import retrain
from storage.errors import OutputError
from storage.locations import Location
from storage.locks import only_run
from storage.output.manifests import read_manifest
from storage.registry.checkpoints import Registry

NUM_COPIES = 3  # of the dataset, so that there is something to do for a second or two
CLASSIFY = "import sys; from flows.classify import classify; classify(sys.argv[1], sys.argv[2], registry=sys.argv[3])"


def upload(folder: Path, place: Location) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            (place / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())


@pytest.fixture
def registry(s3: Callable[[str], str], untrained: dict[str, Path]) -> str:
    """A registry on S3 with a champion."""
    files = {path.name: path.read_bytes() for path in untrained["additive"].iterdir()}
    make_champion(s3("registry"), from_files(files, where="a test"))
    return s3("registry")


@pytest.fixture
def larger(dataset: Path, tmp_path: Path) -> Path:
    for copy in range(NUM_COPIES):
        shutil.copytree(dataset, tmp_path / f"larger/copy-{copy}")
    return tmp_path / "larger"


@pytest.mark.parametrize(("source_on", "output_on"), [("s3", "s3"), ("s3", "disk"), ("disk", "s3")])
def test_output_is_that_of_a_local_disk(
    source_on: str,
    output_on: str,
    s3: Callable[[str], str],
    registry: str,
    dataset: Path,
    tmp_path: Path,
    prefect_server: str,
) -> None:
    upload(dataset, Location.parse(s3("data")))
    classify(str(dataset), str(tmp_path / "expected"), registry=registry, label_column="label")
    source = s3("data") if source_on == "s3" else str(dataset)
    output = s3("out") if output_on == "s3" else str(tmp_path / "out")
    state: State[object] = classify(source, output, registry=registry, label_column="label", return_state=True)
    assert state.is_completed(), state.message
    assert scored_files(output) == scored_files(str(tmp_path / "expected"))
    assert len(scored_files(output)) == 8
    first = read_manifest(Location.parse(output), str(state.state_details.flow_run_id))
    assert first is not None
    page = (Location.parse(output) / first.report).read_text()
    assert "Counts add up: 420 rows in 4 files" in page
    assert '<div class="tokens"' in page

    assert verify(source, output, registry=registry) == DONE
    state = classify(source, output, registry=registry, label_column="label", return_state=True)
    assert state.message == "Nothing to do: all 4 shards are up to date."
    manifest = read_manifest(Location.parse(output), str(state.state_details.flow_run_id))
    assert manifest is not None
    assert manifest.source == str(Location.parse(source))


def test_an_output_is_looked_at_and_asked_as_on_a_local_disk(
    s3: Callable[[str], str], registry: str, dataset: Path, tmp_path: Path, attnlstm: Callable[..., Any]
) -> None:
    upload(dataset, Location.parse(s3("data")))
    there, here = s3("out"), str(tmp_path / "out")
    for source, output in ((s3("data"), there), (str(dataset), here)):
        assert classify(source, output, registry=registry, return_state=True).is_completed()
    row = ("--row", "date=2026-11-02/part-0.parquet:7", "--registry", registry)
    for command, *words in (("errors",), ("tokens", "--class", "digits"), ("explain", *row)):
        sources = ((s3("data"),), (str(dataset),)) if command == "explain" else ((), ())
        on_s3, on_disk = (
            attnlstm(command, *source, output, *words) for source, output in zip(sources, (there, here), strict=True)
        )
        assert (on_s3.code, on_s3.out) == (0, on_disk.out), on_s3.err

    ended = attnlstm("report", there, "--registry", registry)
    assert (ended.code, ended.err) == (0, "")
    assert '<div class="tokens"' in (Location.parse(there) / "report.html").read_text()

    ended = attnlstm("contract", there)
    assert (ended.code, ended.err) == (0, "")
    views = (Location.parse(there) / "contract/views.sql").read_text()
    assert f"read_parquet('{s3('out').partition('?')[0]}/predictions/**/*.parquet'" in views

    assert storage.open_rows(there).collect().equals(storage.open_rows(here).collect())


@pytest.mark.slow
def test_run_that_is_killed_is_finished_by_the_next_one(
    s3: Callable[[str], str],
    registry: str,
    larger: Path,
    prefect_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload(larger, Location.parse(s3("data")))
    classify(s3("data"), s3("expected"), registry=registry)
    expected = scored_files(s3("expected"))

    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    command = [sys.executable, "-c", CLASSIFY, s3("data"), s3("out"), registry]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while len(scored_files(s3("out"))) < 4:
                assert process.poll() is None, "it ended too early"
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(OutputError, match=rf"Another run is writing .*, process {process.pid} on"):
                classify(s3("data"), s3("out"), registry=registry)
        finally:
            process.kill()
    committed = scored_files(s3("out"))
    assert 4 <= len(committed) < len(expected)
    assert all(expected[path] == content for path, content in committed.items())

    monkeypatch.setattr(flows.classify, "only_run", functools.partial(only_run, live_seconds=3))
    time.sleep(4)
    state: State[object] = classify(s3("data"), s3("out"), registry=registry, return_state=True)
    assert state.is_completed(), state.message
    assert not re.search(r"\b0 shards were up to date", str(state.message))
    assert scored_files(s3("out")) == expected
    assert verify(s3("data"), s3("out"), registry=registry) == DONE


def test_run_that_has_lost_its_hold_commits_nothing_more(
    s3: Callable[[str], str], registry: str, dataset: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_over(*_: object) -> None:
        for lease in (Location.parse(s3("out")) / ".leases").files():
            lease.delete()

    monkeypatch.setattr(flows.classify, "clear_superseded", take_over)
    state: State[object] = classify(str(dataset), s3("out"), registry=registry, return_state=True)
    assert state.is_failed()
    assert "This run has lost its hold on" in str(state.message)
    assert scored_files(s3("out")) == {}


def test_retrain_publishes_to_a_registry_on_s3(s3: Callable[[str], str], dataset: Path, prefect_server: str) -> None:
    upload(dataset, Location.parse(s3("data")))
    state: State[dict[str, str]] = retrain(s3("data"), registry=s3("registry"), epochs=1, return_state=True)
    assert state.is_completed(), state.message
    registry = Registry.open(s3("registry"))
    assert registry.versions() == [state.result()["version"]]
    stored = registry.load(state.result()["version"])
    assert stored.card.data.source == str(Location.parse(s3("data")))


@pytest.mark.parametrize(
    ("message", "transient"),
    [
        ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached", True),
        ("AWS Error UNKNOWN (HTTP status 503) during UploadPart operation: No response body.", True),
        ("AWS Error UNKNOWN (HTTP status 429) during GetObject operation: No response body.", True),
        ("AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.", True),
        ("AWS Error UNKNOWN (HTTP status 400) during GetObject operation: No response body.", False),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", False),
        ("AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation: The specified bucket does not exist", False),
        ("AWS Error INVALID_ACCESS_KEY_ID during ListObjectsV2 operation: The key does not exist.", False),
    ],
)
def test_refusals_of_a_store_are_not_tried_again(message: str, transient: bool) -> None:
    class Ended:
        def result(self, raise_on_failure: bool) -> OSError:
            return OSError(message)

    assert is_transient(None, None, Ended()) == transient  # type: ignore[arg-type]
