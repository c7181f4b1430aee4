"""A cache of compiled code that is damaged, or that can't be used, costs a compilation and nothing else."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# The module is a file of its own, so that Numba keeps what it compiled in the folder that the environment names.
_MODULE = """
from numba.core import types
from attnlstm.engines.numba_cache import compiled

def double(values):
    for i in range(len(values)):
        values[i] *= 2

run = compiled(double, types.void(types.float32[::1]))
hits = sum(run.stats.cache_hits.values())

import numpy as np
values = np.ones(3, np.float32)
run(values)
print(values.tolist(), hits)
"""


@pytest.fixture
def compile_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Compiles a function in a fresh process, with a cache in `cache`; gives what it computes, and how often it was
    read from there."""
    script = tmp_path / "script.py"
    script.write_text(_MODULE)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))

    def run() -> str:
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"torn"])
def test_damaged_file_is_replaced(compile_with: Callable[[], str], tmp_path: Path, ending: str, content: bytes) -> None:
    assert compile_with() == "[2.0, 2.0, 2.0] 0"
    (file,) = (tmp_path / "cache").rglob(f"*.{ending}")
    file.write_bytes(content)

    assert compile_with() == "[2.0, 2.0, 2.0] 0"
    assert compile_with() == "[2.0, 2.0, 2.0] 1"


def test_folder_that_can_not_be_made_is_no_reason_to_stop(compile_with: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")

    assert compile_with() == "[2.0, 2.0, 2.0] 0"
