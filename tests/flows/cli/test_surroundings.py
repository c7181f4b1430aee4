"""The command in surroundings that are not a developer's: another locale, a company's proxy, a user without a home."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import COMMAND

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
# A user who is in no list of users, and whose files are still those of this one.
STRANGER = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]


@pytest.fixture
def accented(tmp_path: Path) -> Path:
    """A source with an accent in its name, of one row."""
    source = tmp_path / "données"
    source.mkdir()
    pq.write_table(pa.table({"tokens": ["déjà vu"]}), source / "part-é.parquet")
    return source


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in an environment of these variables alone, maybe by way of another program."""

    def run_with(environment: dict[str, str], *words: str, through: list[str] | None = None) -> Any:
        kept = {name: os.environ[name] for name in ("PATH", "DO_NOT_TRACK") if name in os.environ}
        command = [*(through or []), *COMMAND, *words]
        return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False)

    return run_with


def test_names_that_ascii_has_no_characters_for_are_found_and_printed(
    run: Callable[..., Any], accented: Path, untrained: dict[str, Path], tmp_path: Path
) -> None:
    words = ["plan", str(accented), str(tmp_path / "sortié"), "--checkpoint", str(untrained["additive"])]

    text, record = run(ASCII, *words), run(ASCII, *words, "--json")

    assert (text.returncode, text.stderr) == (0, "")
    assert r"part-\xe9.parquet" in text.stdout
    assert [shard["name"] for shard in json.loads(record.stdout)["pending"]] == ["part-é.parquet"]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, which makes a user without a home")
def test_a_user_without_a_home_behind_a_proxy_classifies_in_any_locale(
    run: Callable[..., Any], accented: Path, untrained: dict[str, Path], tmp_path: Path
) -> None:
    if subprocess.run([*STRANGER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel gives no user namespaces")
    output = tmp_path / "sortié"
    proxy = "http://127.0.0.1:9"  # where nobody listens
    proxies = {"HTTP_PROXY": proxy, "http_proxy": proxy, "HTTPS_PROXY": proxy, "ALL_PROXY": proxy}
    words = ["classify", str(accented), str(output), "--checkpoint", str(untrained["additive"])]

    done = run(ASCII | proxies, *words, through=STRANGER)

    assert done.returncode == 0, done.stderr
    assert "PREFECT_HOME" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert pq.read_table(output / "predictions" / "part-é.parquet").num_rows == 1
