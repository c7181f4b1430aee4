"""What a process may use of a machine, and memory that it keeps, so that taking it again costs no page faults."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from attnlstm.process import memory_bytes, num_cores

_FAULTS = """
import resource, sys
import numpy as np
from attnlstm.process import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def take():
    blocks = [np.ones(1 << 20) for _ in range(4)]  # 8 MiB each

take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_taken_again_costs_no_page_faults() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < 0.01 * faults("leave")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_a_process_that_is_bound_to_one_core_has_one() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    code += "from attnlstm.process import num_cores; print(num_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({}, 3),
    ],
)
def test_a_container_has_the_cores_of_its_quota(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert num_cores(tmp_path) == expected


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_container_has_the_memory_of_its_limit(name: str, tmp_path: Path) -> None:
    of_machine = memory_bytes(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    for text, expected in (("max", of_machine), (str(1 << 62), of_machine), (str(1 << 20), 1 << 20)):
        (tmp_path / name).write_text(f"{text}\n")
        assert memory_bytes(tmp_path) == expected
