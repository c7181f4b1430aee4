"""Arrays to arrays, on one core, in turns: our engines, torch's LSTM alone, ONNX Runtime; and the padding of batches.

torch's LSTM gets rows of equal length, unpacked, at several batch sizes, which is oneDNN at its best; it has neither
attention nor classifier to compute.
"""

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from attnlstm.batching import plan_batches
from attnlstm.engines import EngineName, open_engine, why_not_fused
from attnlstm.engines.torch_engine import MAX_ROWS, MAX_TOKENS
from attnlstm.network import AttentionLSTM
from contenders import CONTENDERS
from end_to_end import Plan
from findings import Findings
from script import Task, load_network
from turns import describe, ratio, spread
from workloads import Workload, checkpoint, lognormal, ragged

EQUAL_TOKENS = 512
BATCH_ROWS = (16, 32, 64, 128, 256)
TOKENS = {16: 1 << 19, 64: 1 << 17, 256: 1 << 14}
"""How many tokens to score, by hidden size, for a measurement of about half a second."""

ONNX = CONTENDERS["ONNX Runtime, sorted"]

Call = Callable[[], object]


def compare_engines(plan: Plan, hidden_sizes: Sequence[int] = (16, 64, 256), share: float = 1.0) -> Findings:
    """share: of TOKENS, less for a quick look."""
    torch.set_num_threads(1)
    rows, figures = [], {}
    for hidden_size in hidden_sizes:
        place = checkpoint(Workload("lognormal", 0, hidden_size), plan.folder)
        contests = _contests(load_network(place), Task(place), int(TOKENS[hidden_size] * share))
        for kind, calls in contests.items():
            speeds = _speeds(calls, plan.rounds)
            for name, speed in speeds.items():
                times = ratio(next(iter(speeds.values())), speed)
                rows.append([f"hidden {hidden_size}, {kind}: {name}", describe(spread(speed)), describe(times)])
                figures[f"{hidden_size}, {kind}: {name}"] = {
                    "million_tokens_per_second": spread(speed),
                    "times_slower_than_ours": times,
                }
    figures["padding_share"] = padding_share(lognormal(20_000))
    notes = [
        f"Padding of the torch engine on lognormal lengths: {figures['padding_share']:.2%} of all tokens",
        "The LSTM alone computes neither embedding nor attention nor classifier",
        "By CPU time, so that other work on the machine matters less",
    ]
    header = ["one core", "Mtokens/s", "times slower than the first of its kind"]
    return Findings("Scoring only, one core", header, rows, notes, figures)


def _speeds(calls: dict[str, tuple[Call, int]], rounds: int) -> dict[str, list[float]]:
    """Million tokens a second of CPU time, by name, in turns."""
    for call, _ in calls.values():
        call()
    speeds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, num_tokens) in calls.items():
            began = time.process_time()
            call()
            speeds[name].append(num_tokens / (time.process_time() - began) / 1e6)
    return speeds


def padding_share(lengths: np.ndarray) -> float:
    """Share of what the torch engine computes that is padding."""
    batches = plan_batches(lengths, max_tokens=MAX_TOKENS["cpu"], max_rows=MAX_ROWS["cpu"])
    computed = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    return 1 - int(lengths.sum()) / computed


def _contests(network: AttentionLSTM, task: Task, num_tokens: int) -> dict[str, dict[str, tuple[Call, int]]]:
    """Calls that are timed and the tokens of each, by kind of data and name; ours first."""
    equal = f"{EQUAL_TOKENS} tokens"
    data = {
        "lognormal": ragged(lognormal(max(1, num_tokens // 300))),
        equal: ragged(np.full(max(1, num_tokens // EQUAL_TOKENS), EQUAL_TOKENS)),
    }
    names: list[EngineName] = ["torch"] if why_not_fused(network.config, "cpu") else ["fused-cpu", "torch"]
    scores = {name: open_engine(network, "cpu", 1, name).score for name in names}
    if not ONNX.reason_to_skip:
        for rows in BATCH_ROWS:
            settings = {"batch_rows": rows, "side_by_side": True}
            scores[f"ONNX Runtime, batches of {rows}"] = ONNX.open_score(task, settings)
    contests: dict[str, dict[str, tuple[Call, int]]] = {
        kind: {name: (functools.partial(score, *ragged_rows), len(ragged_rows[0])) for name, score in scores.items()}
        for kind, ragged_rows in data.items()
    }
    for rows in BATCH_ROWS:
        contests[equal][f"LSTM alone, oneDNN, batches of {rows}"] = _lstm_alone(network, rows), rows * EQUAL_TOKENS
    return contests


def _lstm_alone(network: AttentionLSTM, rows: int) -> Call:
    token_ids = torch.randint(0, 256, (rows, EQUAL_TOKENS))
    embedded = network.embedding(token_ids).detach()

    def forward() -> None:
        with torch.inference_mode():
            network.sequence(embedded)

    return forward
