"""The benchmarks run from end to end on tiny data, and agree. What they measure is never asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1]


@pytest.mark.slow
def test_quick_run_writes_table_figures_and_picture_of_contenders_that_agree(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "run.py"), "--quick", "--rounds", "1", "--threads", "1"]
    done = subprocess.run([*command, "--folder", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    results = tmp_path / "results"
    found = json.loads((results / "speed.json").read_text())
    contenders = found["end-to-end"]["figures"]["contenders"]
    assert list(contenders)[:2] == ["attnlstm without Prefect", "naive script"]  # ONNX Runtime may not be installed
    assert 0 < contenders["naive script"]["largest_differences"]["weights"] < 1e-4
    assert "| naive script |" in (results / "speed.md").read_text()
    assert "| naive script |" in done.stdout
    assert "naive script" in (results / "speed.svg").read_text()
    is_avx512 = found["scoring"]["machine"]["instructions"] == "AVX-512"
    again = {name: record["machine"]["instructions"] for name, record in found.items() if name.endswith(", AVX2")}
    assert again == (dict.fromkeys(("scoring, AVX2", "training, AVX2"), "AVX2") if is_avx512 else {})


def test_a_process_kept_to_avx2_finds_no_avx512_even_where_it_asks_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from machine import without_avx512

    if not (hiding := without_avx512(tmp_path).get("LD_PRELOAD")):
        pytest.skip("there is no C compiler, or Linux can't make CPUID fault on this processor")
    asks = [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"]
    done = subprocess.run(asks, env=os.environ | {"LD_PRELOAD": hiding}, capture_output=True, text=True, check=True)
    assert done.stdout == "AVX2\n"


def test_readmes_say_what_was_measured_with_the_default_preset_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from publish import with_speed

    def record(factor: float) -> dict[str, object]:
        names = ("attnlstm classify", "torch, sorted", "ONNX Runtime, sorted")
        times = {"low": 2, "high": 3}
        contenders = {
            name: {
                "million_tokens_per_second": {"median": speed * factor},
                "times_slower_than_ours": times,
            }
            for name, speed in zip(names, (4.0, 2.0, 1.0), strict=True)
        }
        machine = {"cores": "2", "instructions": "AVX2"}
        return {"figures": {"contenders": contenders, "num_tokens": 6_400_000}, "machine": machine}

    known = {"hidden-16": record(3), "end-to-end": record(1)}
    table = with_speed((REPOSITORY / "attnlstm/README.md").read_text(), known)
    page = with_speed((REPOSITORY / "README.md").read_text(), known)

    assert "| `attnlstm classify` | 4 | 12 |" in table
    assert "| torch, rows sorted by length, oneDNN | 2 (2-3 times slower) | 6 (2-3 times slower) |" in table
    assert "Medians of some turns" in table
    text = "weights, 6.4 million tokens in rows of lognormal lengths, hidden size 32, on 2 cores with AVX2: "
    assert text + "`attnlstm classify` 4 million tokens a second, torch with" in " ".join(page.split())
    assert len(page.split()) <= 1500
    assert with_speed(page, {"hidden-16": record(3)}) == page
