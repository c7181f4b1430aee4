"""The same backfill of three partitions with threads, Ray and Dask: the bytes must be the same, the times are shown.

    python tests/benchmarks/runners.py                    three partitions of 40,000 rows, three rounds in turns
    python tests/benchmarks/runners.py --rows 2000 --rounds 1

Each is a command line of its own, with a Prefect server and, for Ray and Dask, a local cluster of as many processes as
there are cores; all of that is in "command, s". "shards, s" is from the first task of each partition's run to its
last, by the manifests. On one machine threads must win; what is seen is what many machines cost before they help.
Needs the extras `ray` and `dask`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

from flows.orchestration.runners import RunnerName
from turns import describe, spread
from workloads import Workload, checkpoint, dataset

PARTITIONS = ("2026-11-01", "2026-11-02", "2026-11-03")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000, help="of each partition, of lognormal lengths")
    parser.add_argument("--rounds", type=int, default=3, help="how often each runner has its turn")
    parser.add_argument("--folder", type=Path, default=Path("bench"), help="for datasets, which are kept")
    arguments = parser.parse_args()
    workload = Workload("lognormal", arguments.rows)
    source, model = partitioned(workload, arguments.folder), checkpoint(workload, arguments.folder).absolute()
    runners: tuple[RunnerName, ...] = get_args(RunnerName)
    commands: dict[str, list[float]] = {runner: [] for runner in runners}
    shards: dict[str, list[float]] = {runner: [] for runner in runners}
    wanted: dict[str, bytes] = {}
    for _ in range(arguments.rounds):
        for runner in runners:
            with tempfile.TemporaryDirectory(prefix="attnlstm-runners-", ignore_cleanup_errors=True) as folder:
                began = time.perf_counter()
                run_backfill(runner, source, model, Path(folder))
                commands[runner].append(time.perf_counter() - began)
                shards[runner].append(scoring_seconds(Path(folder) / "output"))
                found = parquet_files(Path(folder) / "output")
                wanted = wanted or found
                if found != wanted:
                    sys.exit(f"{runner} wrote other bytes than {runners[0]}; nothing was measured")
    print(f"{len(wanted)} files of {sum(map(len, wanted.values())):,} bytes, the same with every runner\n")
    print("| runner | command, s | shards, s |")
    print("|---|---:|---:|")
    for runner in runners:
        print(f"| {runner} | {describe(spread(commands[runner]))} | {describe(spread(shards[runner]))} |")


def partitioned(workload: Workload, folder: Path) -> Path:
    """The workload's files, once for each partition."""
    place = folder.absolute() / f"partitions-{workload.rows}"
    if not place.exists():
        unfinished = place.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        for value in PARTITIONS:
            shutil.copytree(dataset(workload, folder), unfinished / f"date={value}")
        unfinished.rename(place)
    return place


def run_backfill(runner: RunnerName, source: Path, model: Path, folder: Path) -> None:
    command = [str(Path(sys.executable).with_name("attnlstm")), "backfill", str(source), str(folder / "output")]
    command += ["--checkpoint", str(model), "--runner", runner]
    environment = os.environ | {"PREFECT_HOME": str(folder / "prefect")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{runner} failed:\n{done.stdout}{done.stderr}")


def scoring_seconds(output: Path) -> float:
    manifests = [json.loads(path.read_text()) for path in (output / "runs").glob("*.json")]
    return sum(manifest["seconds"] for manifest in manifests)


def parquet_files(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in sorted(output.rglob("*.parquet"))}


if __name__ == "__main__":
    main()
