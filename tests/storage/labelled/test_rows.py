"""What is appended comes out in order, from memory or from a file that nobody sees."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from storage.labelled.rows import TokenSpool


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("memory_bytes", [0, 1, 7, 20, 1000])
def test_parts_come_out_end_to_end(dtype: type[np.integer], memory_bytes: int) -> None:
    parts = [np.arange(start, start + 5, dtype=np.uint8) for start in range(0, 50, 5)]
    spool = TokenSpool(dtype, memory_bytes)
    for part in [*parts, parts[0][:0]]:
        spool.append(part)
    values = spool.array()
    assert values.dtype == dtype
    assert values.tolist() == list(range(50))


@pytest.mark.parametrize("memory_bytes", [0, 100])
def test_nothing_appended_is_an_empty_array(memory_bytes: int) -> None:
    spool = TokenSpool(np.uint8, memory_bytes)
    spool.append(np.zeros(0, np.uint8))
    assert spool.array().tolist() == []


def test_what_was_appended_may_change_afterwards() -> None:
    part = np.ones(3, np.uint8)
    spool = TokenSpool(np.uint8)
    spool.append(part)
    part[:] = 9
    assert spool.array().tolist() == [1, 1, 1]


def test_file_has_no_name_so_a_kill_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = TokenSpool(np.uint8, 4)
    spool.append(np.arange(10, dtype=np.uint8))
    assert list(tmp_path.iterdir()) == []
    assert spool.array().tolist() == list(range(10))
