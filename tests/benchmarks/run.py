"""Run the benchmarks, in parts, and write their results: a Markdown table, a JSON file and a picture.

    python tests/benchmarks/run.py                          all parts but the long ones
    python tests/benchmarks/run.py --only end-to-end        one part; the results of others stay as they are
    python tests/benchmarks/run.py --only growth            ten thousand to ten million rows
    python tests/benchmarks/run.py --results tests/benchmarks/results    renews the READMEs' tables and picture too

On a processor with AVX-512 some parts are measured a second time, in a process that is kept to AVX2. Datasets and
outputs go to --folder; they are made once and found again. Needs the extra `bench`.
"""

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnlstm.process import num_cores
from contenders import BUNDLES, FLOW, PEERS, TORCH_ENGINE
from end_to_end import Plan, compare
from findings import Findings, markdown
from machine import AVX2_ONLY, instruction_set, without_avx512
from publish import AVX2, write_results
from workloads import Workload

SLOW_PEERS = ["naive script", "PackedSequence, sorted"]
FAST_PEERS = [name for name in PEERS if name not in SLOW_PEERS]
MAIN = [FLOW, BUNDLES, *FAST_PEERS]
# Ray Data starts processes within every run, half a minute of them: measured where it matters most.
OTHERS = [name for name in MAIN if name != "Ray Data"]

ROWS = {32: 80_000, 16: 200_000, 64: 5_000, 128: 1_500, 256: 400}
"""By hidden size, for a run of ten seconds or so."""

Part = Callable[[Plan], Findings]


def _compared(title: str, workload: Workload, names: list[str], **options: bool) -> Part:
    return lambda plan: compare(f"{title} ({workload.name})", workload, names, plan, **options)


def _of_size(hidden_size: int, names: list[str], **options: bool) -> Part:
    title = f"Parquet to Parquet, {'with attention' if options.get('attention', True) else 'predictions only'}"
    return _compared(title, Workload("lognormal", ROWS[hidden_size], hidden_size), names, **options)


def _from(module: str, function: str, **options: Any) -> Part:
    """A part in a module of its own, imported when it is run: some need packages that others do without."""
    return lambda plan: getattr(importlib.import_module(module), function)(plan, **options)


PARTS: dict[str, Part] = {
    "end-to-end": _of_size(32, [*MAIN, TORCH_ENGINE]),
    "hidden-16": _of_size(16, [*MAIN, TORCH_ENGINE]),
    "hidden-64": _of_size(64, OTHERS),
    "hidden-128": _of_size(128, OTHERS),
    "hidden-256": _of_size(256, OTHERS),
    "no-attention": _of_size(32, OTHERS, attention=False),
    "slow-peers": _compared("Slower scripts, fewer rows", Workload("lognormal", 1_000), [BUNDLES, *SLOW_PEERS]),
    "sample": _compared("Real bytes, 512 a row", Workload("sample", 5_000), OTHERS),
    "short": _compared("Short rows, 16 tokens", Workload("short", 100_000), OTHERS),
    "long": _compared("Long rows, 4,096 tokens", Workload("long", 500), OTHERS),
    "workers": _from("workers", "compare_workers", workload=Workload("lognormal", ROWS[32])),
    "start-up": _compared(
        "Whole processes, with imports, loading and a server of their own",
        Workload("lognormal", ROWS[32]),
        OTHERS,
        warm=False,
    ),
    "starting": _from("starting", "measure_starting"),
    "seconds": _from("seconds", "compare_seconds", rows_of_hidden={size: ROWS[size] for size in (32, 16)}),
    "scoring": _from("scoring_only", "compare_engines"),
    "repeats": _from("repeats", "compare_repeats"),
    "ngrams": _from("ngrams", "compare_ngrams"),
    "training": _from("training_speed", "compare_training"),
    "growth": _from("growth", "measure_growth"),
}
LONG_PARTS = {"growth"}

AVX2_PARTS = ("end-to-end", "hidden-16", "scoring", "training")
"""Measured with AVX2 as well on a processor that has AVX-512, which most rented ones have not."""

QUICK_PARTS: dict[str, Part] = {
    "end-to-end": _compared("A few rows", Workload("lognormal", 60), [BUNDLES, "naive script", "ONNX Runtime, sorted"]),
    "starting": PARTS["starting"],
    "seconds": _from("seconds", "compare_seconds", rows_of_hidden={16: 60}),
    "scoring": _from("scoring_only", "compare_engines", hidden_sizes=[32, 16], share=0.01),
    "repeats": _from("repeats", "compare_repeats", num_rows=100),
    "ngrams": _from("ngrams", "compare_ngrams", num_rows=50),
    "training": _from("training_speed", "compare_training", hidden_sizes=[16], num_rows=8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"parts to run: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each comparison (default 5)")
    parser.add_argument("--threads", type=int, default=num_cores(), help="cores for each contender (default: all)")
    parser.add_argument("--folder", type=Path, default=Path("bench"), help="for datasets and outputs (default bench)")
    parser.add_argument("--results", type=Path, help="where results go (default: the folder's results)")
    parser.add_argument("--quick", action="store_true", help="a few minutes on tiny data: shows that all of it works")
    arguments = parser.parse_args()

    results = arguments.results or arguments.folder / "results"
    _prepare_environment(arguments.folder)
    parts = QUICK_PARTS if arguments.quick else PARTS
    plan = Plan(arguments.folder, arguments.rounds, arguments.threads)
    is_limited = AVX2_ONLY.items() <= os.environ.items()
    if arguments.quick:
        plan = replace(plan, tried_rows=None, warm_up_rows=8)
    names = arguments.only or [name for name in parts if name not in LONG_PARTS]
    for name in names:
        os.environ.pop("PREFECT_API_URL", None)  # or the processes of a part would not start servers of their own
        record = parts[name](plan).record()
        print(markdown(record), flush=True)
        # After each part, so that what was measured is never lost.
        write_results(results, name + AVX2 if is_limited else name, record, list(PARTS))
    if instruction_set() == "AVX-512":
        again = [name for name in names if name in (AVX2_PARTS[-2:] if arguments.quick else AVX2_PARTS)]
        words = [word for word in sys.argv if word not in (*names, "--only")]
        if again:
            command = [sys.executable, *words, "--only", *again]
            subprocess.run(command, env=os.environ | without_avx512(arguments.folder), check=True)


def _prepare_environment(folder: Path) -> None:
    """Settings that Prefect reads when it is imported: a server and a database of the benchmarks' own."""
    os.environ.update(
        PREFECT_HOME=str((folder / "prefect").absolute()),
        PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="WARNING",
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="180",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        DO_NOT_TRACK="1",
    )


if __name__ == "__main__":
    main()
