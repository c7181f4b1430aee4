"""From Parquet to Parquet: every contender on the same files, in turns, its answers compared with ours.

Owns how settings are chosen for each contender and what its measurements become. Knows nothing about what a contender
does.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds

from agreement import differences
from child import Request
from contenders import BUNDLES, CONTENDERS, OURS
from findings import Findings
from turns import Measurement, describe, measure, ratio, spread
from workloads import Workload, checkpoint, dataset

MIB = 1 << 20


@dataclass(frozen=True)
class Plan:
    """How to measure. folder: where datasets and outputs go. threads: cores that each contender may use.

    tried_rows: one in so many rows of the dataset make the smaller one on which settings are tried; None to take the
        first settings untried.
    warm_up_rows: rows that are scored before the clock starts.
    """

    folder: Path
    rounds: int
    threads: int
    tried_rows: int | None = 4
    warm_up_rows: int = 64


def compare(
    title: str, workload: Workload, names: Sequence[str], plan: Plan, *, attention: bool = True, warm: bool = True
) -> Findings:
    """Measure in turns those contenders that are installed, each with its best settings.

    warm: measure with models loaded and compiled; otherwise the whole life of a process, as a command takes.
    """
    skipped = {name: reason for name in names if (reason := CONTENDERS[name].reason_to_skip)}
    names = [name for name in names if name not in skipped]
    source = dataset(workload, plan.folder)
    requests = {
        name: _with_best_settings(request_for(name, workload, plan, attention), workload, plan) for name in names
    }
    if not warm:
        requests = {name: replace(request, warm_up="") for name, request in requests.items()}

    reference = plan.folder / "reference"
    shutil.rmtree(reference, ignore_errors=True)
    measure(replace(request_for(BUNDLES, workload, plan, attention), output=str(reference)))
    found: dict[str, list[Measurement]] = {name: [] for name in names}
    differing: dict[str, dict[str, float]] = {}
    for _ in range(plan.rounds):
        for name in names:
            found[name].append(measure(requests[name]))
            output = Path(requests[name].output)
            if name not in differing:
                differing[name] = differences(output, reference, attention)
            shutil.rmtree(output)
    shutil.rmtree(reference)

    num_tokens = count_tokens(source)
    clock = "seconds" if warm else "command_seconds"
    speeds = {name: [num_tokens / each[clock] / 1e6 for each in found[name]] for name in names}
    return _findings(title, workload, num_tokens, speeds, found, requests, differing, skipped)


def count_tokens(source: Path) -> int:
    batches = ds.dataset(source).to_batches(columns=["tokens"])
    return sum(pc.sum(pc.binary_length(batch["tokens"])).as_py() or 0 for batch in batches)


def request_for(name: str, workload: Workload, plan: Plan, attention: bool = True) -> Request:
    few = replace(workload, rows=plan.warm_up_rows)
    return Request(
        contender=name,
        settings={},
        checkpoint=str(checkpoint(workload, plan.folder)),
        threads=plan.threads,
        attention=attention,
        source=str(dataset(workload, plan.folder)),
        output=str(plan.folder / "output"),
        warm_up=str(dataset(few, plan.folder)),
    )


def _with_best_settings(request: Request, workload: Workload, plan: Plan) -> Request:
    """The fastest of the contender's candidates on fewer rows of the same kind; chosen once for all comparisons."""
    candidates = CONTENDERS[request.contender].settings()
    if len(candidates) == 1 or plan.tried_rows is None:
        return replace(request, settings=candidates[0])
    key = (request.contender, workload, plan.threads)
    if key not in _best_settings:
        fewer = str(dataset(replace(workload, rows=workload.rows // plan.tried_rows), plan.folder))
        seconds = {}
        for number, settings in enumerate(candidates):
            measured = measure(replace(request, settings=settings, source=fewer))
            shutil.rmtree(request.output)
            seconds[number] = measured["seconds"]
        _best_settings[key] = candidates[min(seconds, key=seconds.__getitem__)]
    return replace(request, settings=_best_settings[key])


_best_settings: dict[tuple[str, Workload, int], dict[str, object]] = {}


def _findings(
    title: str,
    workload: Workload,
    num_tokens: int,
    speeds: dict[str, list[float]],
    found: dict[str, list[Measurement]],
    requests: dict[str, Request],
    differing: dict[str, dict[str, float]],
    skipped: dict[str, str],
) -> Findings:
    ours = next((name for name in speeds if name in OURS), None)
    rows, figures = [], {}
    for name, speed in speeds.items():
        memory = spread((each["peak_bytes"] + each["children_peak_bytes"]) / MIB for each in found[name])
        times = ratio(speeds[ours], speed) if ours else None
        settings = ", ".join(f"{key}={value}" for key, value in requests[name].settings.items())
        rows.append(
            [
                name,
                describe(spread(speed)),
                describe(times) if times else "",
                f"{memory['median']:,.0f}",
                f"{max(differing[name].values()):.0e}",
                settings,
            ]
        )
        figures[name] = {
            "million_tokens_per_second": spread(speed),
            "times_slower_than_ours": times,
            "settings": requests[name].settings,
            "largest_differences": differing[name],
            "measurements": found[name],
        }
    header = ["", "Mtokens/s", f"times slower than {ours}", "peak memory, MiB", "largest difference", "settings"]
    notes = [f"{workload.rows:,} rows, {num_tokens:,} tokens; {len(next(iter(speeds.values())))} turns"]
    notes += [f"{name} is left out: {reason}" for name, reason in skipped.items()]
    return Findings(title, header, rows, notes, {"num_tokens": num_tokens, "contenders": figures, "skipped": skipped})
