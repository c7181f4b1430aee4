"""Freed memory stays with the process, so that taking it again costs no page faults."""

import platform
import subprocess
import sys

import pytest

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
