"""The benchmarks run from end to end on tiny data, and agree. What they measure is never asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


@pytest.mark.slow
def test_quick_run_writes_table_figures_and_picture_of_contenders_that_agree(tmp_path: Path) -> None:
    command = [sys.executable, str(RUN), "--quick", "--rounds", "1", "--threads", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    results = tmp_path / "results"
    contenders = json.loads((results / "speed.json").read_text())["end-to-end"]["figures"]["contenders"]
    assert list(contenders) == ["attnlstm without Prefect", "naive script"]
    assert 0 < contenders["naive script"]["largest_differences"]["weights"] < 1e-4
    assert "| naive script |" in (results / "speed.md").read_text()
    assert "| naive script |" in done.stdout
    assert "naive script" in (results / "speed.svg").read_text()
