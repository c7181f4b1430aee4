"""Ten thousand rows, a million, ten million: time should grow in proportion, and memory not at all."""

import shutil
from collections.abc import Sequence
from dataclasses import replace

from contenders import FLOW
from end_to_end import MIB, Plan, count_tokens, request_for
from findings import Findings
from turns import measure
from workloads import Workload, dataset

ROWS = (10_000, 1_000_000, 10_000_000)


def measure_growth(plan: Plan, sizes: Sequence[int] = ROWS) -> Findings:
    """The classify flow, once for each size: larger datasets take minutes, and are removed once they are scored."""
    rows, figures = [], {}
    for num_rows in sizes:
        workload = Workload("brief", num_rows)
        request = request_for(FLOW, workload, plan)
        source = dataset(workload, plan.folder)
        num_tokens = count_tokens(source)
        found = measure(replace(request, source=str(source)))
        shutil.rmtree(request.output)
        shutil.rmtree(source)
        figures[str(num_rows)] = found | {"num_tokens": num_tokens}
        speed, memory = num_tokens / found["seconds"] / 1e6, found["peak_bytes"] / MIB
        rows.append(
            [f"{num_rows:,}", f"{num_tokens / 1e6:,.0f}", f"{found['seconds']:,.1f}", f"{speed:.2f}", f"{memory:,.0f}"]
        )
    header = ["rows", "Mtokens", "seconds", "Mtokens/s", "peak memory, MiB"]
    return Findings("Growth, lognormal lengths of median 20, full attention", header, rows, [], figures)
