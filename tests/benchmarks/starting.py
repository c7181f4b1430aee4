"""What starting costs: whole processes, with a server of their own where they need one; and Prefect's task runs.

Commands are measured against what nobody can do without: Python with torch, and a flow of Prefect's that does nothing.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from end_to_end import Plan
from findings import Findings
from turns import describe, ratio, spread
from workloads import Workload, checkpoint, dataset

# Shards, task runs and Parquet files are few, so that little else than starting is measured.
WORKLOAD = Workload("short", 1_000)
NUM_TASKS = 100

_COMMAND = "from flows.cli.app import main; main()"
_EMPTY_FLOW = "import prefect\n@prefect.flow\ndef nothing(): pass\nnothing()"
_TASKS = """
import sys, time
from flows.cli.server import start_prefect
start_prefect()
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

@task
def nothing(number):
    return number

@flow
def run_tasks(count):
    with ThreadPoolTaskRunner(max_workers=2) as runner:
        return [future.result() for future in [runner.submit(nothing, parameters={"number": n}) for n in range(count)]]

run_tasks(1)
for count in (0, int(sys.argv[1])):
    began = time.perf_counter()
    run_tasks(count)
    print(time.perf_counter() - began)
"""


def measure_starting(plan: Plan) -> Findings:
    source, model = dataset(WORKLOAD, plan.folder), checkpoint(WORKLOAD, plan.folder)
    classify = [_COMMAND, "classify", str(source), str(plan.folder / "output"), "--checkpoint", str(model)]
    ways = {
        "1,000 short rows": classify,
        "nothing to do": classify,
        "an empty flow of Prefect's": [_EMPTY_FLOW],
        "Python, importing torch": ["import torch"],
        "Python": ["pass"],
    }
    _run(ways["1,000 short rows"], plan.folder)  # migrates the database and compiles
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(plan.rounds):
        shutil.rmtree(plan.folder / "output")
        for name, words in ways.items():
            seconds[name].append(_run(words, plan.folder)[0])
    shutil.rmtree(plan.folder / "output")
    printed = [_run([_TASKS, str(NUM_TASKS)], plan.folder)[1].split() for _ in range(plan.rounds)]
    each = spread(1000 * (float(full) - float(empty)) / NUM_TASKS for empty, full in printed)
    least = seconds["Python, importing torch"]
    rows = [[name, describe(spread(found)), describe(ratio(found, least))] for name, found in seconds.items()]
    figures = {name: {"seconds": spread(found)} for name, found in seconds.items()} | {"task_run_ms": each}
    notes = [
        "No server is configured; each process that needs one starts its own",
        f"A task run, of {NUM_TASKS} on 2 workers: {describe(each)} ms",
    ]
    return Findings("Starting, whole processes", ["", "seconds", "times Python with torch"], rows, notes, figures)


def _run(words: list[str], folder: Path) -> tuple[float, str]:
    """Seconds of a process, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True, check=False, env=os.environ)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{words[:2]} failed:\n{done.stderr[-4000:]}")
    return seconds, done.stdout
