"""Fresh processes for measurements, and what to make of figures that were taken in turns: A B C, A B C, ...

A machine that slows down slows all contenders of a turn alike, so ratios within turns hold where absolute figures
drift.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from child import Request

Measurement = dict[str, float]
Spread = dict[str, float]


def measure(request: Request) -> Measurement:
    """What `child.py` finds for this request, and `command_seconds`, the life of its process.

    The output stays. Raises RuntimeError with what the process printed if it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "result.json")
        asked.write_text(json.dumps(dataclasses.asdict(request)))
        command = [sys.executable, str(Path(__file__).with_name("child.py")), str(asked), str(answered)]
        began = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(f"{request.contender} failed on {request.source}:\n{done.stdout[-4000:]}")
        return json.loads(answered.read_text()) | {"command_seconds": seconds}


def spread(figures: Iterable[float]) -> Spread:
    """Median and range."""
    ordered = sorted(figures)
    return {"median": statistics.median(ordered), "low": ordered[0], "high": ordered[-1]}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times theirs ours is, turn by turn."""
    return spread(a / b for a, b in zip(ours, theirs, strict=True))


def describe(figures: Spread) -> str:
    """Median and range as text, to three significant digits."""
    return "{median:.3g} ({low:.3g}-{high:.3g})".format(**figures)
