"""Run the benchmarks, in parts, and write their results: a Markdown table, a JSON file and a picture.

    python tests/benchmarks/run.py                          all parts but the long ones
    python tests/benchmarks/run.py --only end-to-end        one part; the results of others stay as they are
    python tests/benchmarks/run.py --only growth            ten thousand to ten million rows
    python tests/benchmarks/run.py --results tests/benchmarks/results    renews the table and picture of the README

Datasets and outputs go to --folder; they are made once and found again. Needs the extra `bench`.
"""

import argparse
import importlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnlstm.process import num_cores
from contenders import BUNDLES, FLOW, PEERS, TORCH_ENGINE
from end_to_end import Plan, compare
from findings import Findings, markdown
from picture import draw
from workloads import Workload

REFERENCE = Workload("lognormal", 40_000)
SLOW_PEERS = ["naive script", "PackedSequence, sorted"]
FAST_PEERS = [name for name in PEERS if name not in SLOW_PEERS]
MAIN = [FLOW, BUNDLES, *FAST_PEERS]
# Ray Data starts processes within every run, half a minute of them: measured where it matters most.
OTHERS = [name for name in MAIN if name != "Ray Data"]


Part = Callable[[Plan], Findings]


def _compared(title: str, workload: Workload, names: list[str], **options: bool) -> Part:
    return lambda plan: compare(f"{title} ({workload.name})", workload, names, plan, **options)


def _from(module: str, function: str, **options: Any) -> Part:
    """A part in a module of its own, imported when it is run: some need packages that others do without."""
    return lambda plan: getattr(importlib.import_module(module), function)(plan, **options)


PARTS: dict[str, Part] = {
    "end-to-end": _compared("Parquet to Parquet, with attention", REFERENCE, [*MAIN, TORCH_ENGINE]),
    "no-attention": _compared("Parquet to Parquet, predictions only", REFERENCE, MAIN, attention=False),
    "slow-peers": _compared("Slower scripts, fewer rows", Workload("lognormal", 1_000), [BUNDLES, *SLOW_PEERS]),
    "sample": _compared("Real bytes, 512 a row", Workload("sample", 10_000), OTHERS),
    "short": _compared("Short rows, 16 tokens", Workload("short", 200_000), OTHERS),
    "long": _compared("Long rows, 4,096 tokens", Workload("long", 1_000), OTHERS),
    "hidden-64": _compared("Hidden size 64", Workload("lognormal", 5_000, 64), OTHERS),
    "hidden-256": _compared("Hidden size 256", Workload("lognormal", 400, 256), OTHERS),
    "workers": _from("workers", "compare_workers", workload=REFERENCE),
    "start-up": _compared(
        "Whole processes, with imports, loading and a server of their own", REFERENCE, MAIN, warm=False
    ),
    "scoring": _from("scoring_only", "compare_engines"),
    "ceiling": _from("ceiling", "find_ceiling"),
    "training": _from("training_speed", "compare_training"),
    "prefect": _from("prefect_cost", "measure_prefect"),
    "growth": _from("growth", "measure_growth"),
}
LONG_PARTS = {"growth"}

QUICK_PARTS: dict[str, Part] = {
    "end-to-end": _compared("Parquet to Parquet, with attention", Workload("lognormal", 60), [BUNDLES, "naive script"]),
    "scoring": _from("scoring_only", "compare_engines", hidden_sizes=[16], share=0.01),
    "ceiling": _from("ceiling", "find_ceiling", num_rows=8),
    "training": _from("training_speed", "compare_training", num_rows=8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"parts to run: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each comparison (default 5)")
    parser.add_argument("--threads", type=int, default=num_cores(), help="cores for each contender (default: all)")
    parser.add_argument("--folder", type=Path, default=Path("bench"), help="for datasets and outputs (default bench)")
    parser.add_argument("--results", type=Path, help="where results go (default: the folder's results)")
    parser.add_argument("--quick", action="store_true", help="seconds on tiny data: shows that all of it works")
    arguments = parser.parse_args()

    results = arguments.results or arguments.folder / "results"
    _prepare_environment(arguments.folder)
    parts = QUICK_PARTS if arguments.quick else PARTS
    plan = Plan(arguments.folder, arguments.rounds, arguments.threads)
    if arguments.quick:
        plan = replace(plan, tried_rows=None, warm_up_rows=8)
    for name in arguments.only or [name for name in parts if name not in LONG_PARTS]:
        record = parts[name](plan).record()
        print(markdown(record), flush=True)
        _write(results, name, record)  # after each part, so that what was measured is never lost


def _prepare_environment(folder: Path) -> None:
    """Settings that Prefect reads when it is imported: a server and a database of the benchmarks' own."""
    os.environ.update(
        PREFECT_HOME=str((folder / "prefect").absolute()),
        PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="WARNING",
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="180",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        DO_NOT_TRACK="1",
    )
    os.environ.pop("PREFECT_API_URL", None)


def _write(results: Path, name: str, record: dict[str, object]) -> None:
    """Put a part's record among the others, and write all three files anew."""
    results.mkdir(parents=True, exist_ok=True)
    figures = results / "speed.json"
    known = json.loads(figures.read_text()) if figures.exists() else {}
    known[name] = record
    known = {part: known[part] for part in PARTS if part in known}
    figures.write_text(json.dumps(known, indent=1) + "\n")
    (results / "speed.md").write_text("\n".join(markdown(record) for record in known.values()))
    draw(known, results / "speed.svg")


if __name__ == "__main__":
    main()
