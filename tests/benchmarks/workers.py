"""One worker and two, up to as many as there are cores: what the classify flow makes of them."""

from dataclasses import replace

from contenders import FLOW
from end_to_end import Plan, compare
from findings import Findings
from turns import describe
from workloads import Workload


def compare_workers(plan: Plan, workload: Workload) -> Findings:
    counts = [count for count in (1, 2, 4, 8, 16) if count <= plan.threads]
    rows, figures = [], {}
    for count in counts:
        found = compare("", workload, [FLOW], replace(plan, threads=count)).figures["contenders"][FLOW]
        rows.append([str(count), describe(found["million_tokens_per_second"])])
        figures[str(count)] = found
    return Findings(f"Workers of the classify flow ({workload.name})", ["workers", "Mtokens/s"], rows, [], figures)
