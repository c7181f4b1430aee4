"""Arrays to arrays, on one core, in turns: our engine, torch, ONNX Runtime, each at its best batch; and the ceiling.

The ceiling is what a core's vector units were measured to do within the same turns, against operations counted for a
token. On equal lengths torch's LSTM takes part alone as well, unpacked, which is oneDNN at its best: it has neither
attention nor classifier to compute.
"""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from attnlstm.batching import plan_batches
from attnlstm.engines import open_engine
from attnlstm.engines.torch_engine import MAX_ROWS, MAX_TOKENS
from attnlstm.network import AttentionLSTM
from ceiling import PeakLoop, operations_per_token
from contenders import PEERS
from end_to_end import Plan
from findings import Findings
from script import Task, load_network
from turns import describe, ratio, spread
from workloads import HIDDEN_SIZES, Workload, checkpoint, lognormal, ragged

EQUAL_TOKENS = 512
BATCH_ROWS = (16, 32, 64, 128, 256)
TOKENS_OF_HIDDEN_1, FEWEST_TOKENS = 1 << 28, 1 << 16
"""How many tokens to score, times the square of the hidden size, for a measurement of about a second; and how many at
least, so that there are large batches."""

Call = Callable[[], object]


def compare_engines(plan: Plan, hidden_sizes: Sequence[int] = HIDDEN_SIZES, share: float = 1.0) -> Findings:
    """share: of the tokens, less for a quick look."""
    torch.set_num_threads(1)
    peak_loop = PeakLoop()
    rows, figures = [], {}
    for hidden_size in hidden_sizes:
        place = checkpoint(Workload("lognormal", 0, hidden_size), plan.folder)
        network = load_network(place)
        operations = operations_per_token(network.config)
        num_tokens = max(FEWEST_TOKENS, TOKENS_OF_HIDDEN_1 // hidden_size**2)
        for kind, lengths in _kinds(int(num_tokens * share)).items():
            speeds, peaks = _speeds(_calls(network, place, lengths), peak_loop, plan.rounds)
            for name, speed in speeds.items():
                times = ratio(next(iter(speeds.values())), speed)
                reached = spread(100 * a * 1e6 * operations / b for a, b in zip(speed, peaks, strict=True))
                alone = "LSTM alone" in name  # of which not all operations are asked
                row = [f"hidden {hidden_size}, {kind}: {name}", describe(spread(speed)), describe(times)]
                rows.append([*row, "" if alone else describe(reached)])
                figures[f"{hidden_size}, {kind}: {name}"] = {
                    "million_tokens_per_second": spread(speed),
                    "times_slower_than_ours": times,
                    "percent_of_ceiling": None if alone else reached,
                }
    figures["padding_share"] = padding_share(lognormal(20_000))
    notes = [
        "The ceiling: multiply-adds and activations counted, against independent multiply-adds measured in each turn",
        f"Padding of the torch engine on lognormal lengths: {figures['padding_share']:.2%} of all tokens",
        "By CPU time, so that other work on the machine matters less",
        *(f"{name} is left out: {peer.reason_to_skip}" for name, peer in PEERS.items() if peer.reason_to_skip),
    ]
    header = ["one core", "Mtokens/s", "times slower than the first of its kind", "share of the counted ceiling, %"]
    return Findings("Scoring only, one core", header, rows, notes, figures)


def padding_share(lengths: np.ndarray) -> float:
    """Share of what the torch engine computes that is padding."""
    batches = plan_batches(lengths, max_tokens=MAX_TOKENS["cpu"], max_rows=MAX_ROWS["cpu"])
    computed = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    return 1 - int(lengths.sum()) / computed


def _kinds(num_tokens: int) -> dict[str, np.ndarray]:
    return {
        "lognormal": lognormal(max(1, num_tokens // 300)),
        f"{EQUAL_TOKENS} tokens": np.full(max(1, num_tokens // EQUAL_TOKENS), EQUAL_TOKENS),
    }


def _calls(network: AttentionLSTM, place: Path, lengths: np.ndarray) -> dict[str, tuple[Call, int]]:
    """What is timed, and the tokens of a call, by name; ours first."""
    data = ragged(lengths)
    calls = {}
    engine = open_engine(network, "cpu", 1)
    engine.score(*data)  # the first call takes memory
    calls[f"attnlstm ({engine.name})"] = functools.partial(engine.score, *data), len(data[0])
    for name in ("torch, sorted", "ONNX Runtime, sorted"):
        if not PEERS[name].reason_to_skip:
            scores = {
                rows: PEERS[name].open_score(Task(place), {"batch_rows": rows, "side_by_side": True})
                for rows in BATCH_ROWS
            }
            calls |= _at_best(
                name, {rows: (functools.partial(score, *data), len(data[0])) for rows, score in scores.items()}
            )
    if len(set(lengths.tolist())) == 1:
        sizes = [rows for rows in BATCH_ROWS if rows <= len(lengths)] or [len(lengths)]
        calls |= _at_best("LSTM alone", {rows: (_lstm_alone(network, rows), rows * EQUAL_TOKENS) for rows in sizes})
    return calls


def _at_best(name: str, calls: dict[int, tuple[Call, int]]) -> dict[str, tuple[Call, int]]:
    """The call of the fastest batch, by a try of each."""
    for call, _ in calls.values():
        call()
    speeds = {rows: _speed(*call) for rows, call in calls.items()}
    best = max(speeds, key=speeds.__getitem__)
    return {f"{name}, batches of {best}": calls[best]}


def _speed(call: Call, num_tokens: int) -> float:
    """Million tokens a second of CPU time."""
    began = time.process_time()
    call()
    return num_tokens / (time.process_time() - began) / 1e6


def _speeds(
    calls: dict[str, tuple[Call, int]], peak_loop: PeakLoop, rounds: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Million tokens a second of CPU time, by name, and multiply-adds a second at the peak, in turns."""
    speeds: dict[str, list[float]] = {name: [] for name in calls}
    peaks = []
    for _ in range(rounds):
        peaks.append(peak_loop.measure())
        for name, (call, num_tokens) in calls.items():
            speeds[name].append(_speed(call, num_tokens))
    return speeds, peaks


def _lstm_alone(network: AttentionLSTM, rows: int) -> Call:
    token_ids = torch.randint(0, 256, (rows, EQUAL_TOKENS))
    embedded = network.embedding(token_ids).detach()

    def forward() -> None:
        with torch.inference_mode():
            network.sequence(embedded)

    return forward
