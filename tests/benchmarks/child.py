"""One measurement in a process of its own: open a contender, warm it up, time it from Parquet to Parquet.

    python tests/benchmarks/child.py REQUEST RESULT

REQUEST and RESULT are JSON files; `turns.py` writes the one and reads the other.
"""

import dataclasses
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from contenders import CONTENDERS
from script import Task


@dataclasses.dataclass(frozen=True)
class Request:
    """contender, settings: who scores and how. source: what is scored. output: where to, a new folder.

    warm_up: a small dataset that is scored before the clock starts; "" for none.
    """

    contender: str
    settings: dict[str, Any]
    checkpoint: str
    threads: int
    attention: bool
    source: str
    output: str
    warm_up: str


def main() -> None:
    request = Request(**json.loads(Path(sys.argv[1]).read_text()))
    task = Task(Path(request.checkpoint), request.threads, request.attention)
    run = CONTENDERS[request.contender].open(task, request.settings)
    output = Path(request.output)
    if request.warm_up:
        run(Path(request.warm_up), output)
        shutil.rmtree(output)
    began = time.perf_counter()
    run(Path(request.source), output)
    seconds = time.perf_counter() - began
    own, of_children = peak_memory()
    result = {"seconds": seconds, "peak_bytes": own, "children_peak_bytes": of_children}
    Path(sys.argv[2]).write_text(json.dumps(result))


def peak_memory() -> tuple[int, int]:
    """Most bytes that this process has had resident, and the sum of what each process below it has had."""
    try:
        parents = {int(path.name): _parent(path) for path in Path("/proc").iterdir() if path.name.isdigit()}
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, 0
    below, found = set[int](), {os.getpid()}
    while found:
        below |= found
        found = {process for process, parent in parents.items() if parent in found}
    below.discard(os.getpid())
    return _peak(os.getpid()), sum(map(_peak, below))


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return 0


def _peak(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    main()
