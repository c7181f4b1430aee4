"""What Prefect costs: an empty flow, and each task run in it, on the server that `attnlstm classify` uses."""

import time

from end_to_end import Plan
from findings import Findings
from turns import describe, spread

NUM_TASKS = 100


def measure_prefect(plan: Plan, num_tasks: int = NUM_TASKS) -> Findings:
    from flows.cli.server import start_prefect

    began = time.perf_counter()
    start_prefect()
    server_seconds = time.perf_counter() - began
    from prefect import flow, task
    from prefect.task_runners import ThreadPoolTaskRunner

    @task
    def nothing(number: int) -> int:
        return number

    @flow
    def run_tasks(count: int) -> int:
        with ThreadPoolTaskRunner(max_workers=plan.threads) as runner:
            futures = [runner.submit(nothing, parameters={"number": number}) for number in range(count)]
            return sum(future.result() for future in futures)

    def seconds(count: int) -> float:
        began = time.perf_counter()
        run_tasks(count)
        return time.perf_counter() - began

    seconds(1)
    empty, full = [], []
    for _ in range(plan.rounds):
        empty.append(seconds(0))
        full.append(seconds(num_tasks))
    each = spread(1000 * (b - a) / num_tasks for a, b in zip(empty, full, strict=True))
    figures = {"server_start_s": server_seconds, "empty_flow_s": spread(empty), "task_run_ms": each}
    rows = [
        ["server's start, s", f"{server_seconds:.1f}"],
        ["an empty flow, s", describe(spread(empty))],
        [f"a task run, of {num_tasks} on {plan.threads} workers, ms", describe(each)],
    ]
    return Findings("What Prefect costs", ["", ""], rows, [], figures)
