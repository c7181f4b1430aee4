"""A good torch script: rows sorted by length, padded, the backward direction run over reversed rows, so that oneDNN
computes the LSTM. Batches go to threads of one core each, or each batch to all cores.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from attnlstm.network import AttentionLSTM
from script import Batches, Floats, Offsets, Rows, Score, Task, Values, load_network, sorted_batches

Forward = Callable[[AttentionLSTM, Tensor, Tensor], tuple[Tensor, Tensor]]
"""network, token_ids (B, T), lengths (B,) to logits and attention weights."""

CANDIDATES: list[dict[str, Any]] = [
    *({"batch_rows": rows, "side_by_side": True} for rows in (16, 64, 256, 1024)),
    {"batch_rows": 256, "side_by_side": False},
]


def open_peer(task: Task, batch_rows: int, side_by_side: bool) -> Score:
    return open_sorted(AttentionLSTM.__call__, task, batch_rows, side_by_side)


def open_sorted(forward: Forward, task: Task, batch_rows: int, side_by_side: bool) -> Score:
    """Sorted by length; batches go to threads of one core each, or each batch to all cores."""
    workers, threads = (task.threads, 1) if side_by_side else (1, task.threads)
    torch.set_num_threads(threads)
    network = load_network(task.checkpoint)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))

    def score(values: Values, offsets: Offsets) -> tuple[Floats, Floats]:
        batches = Batches(values, offsets, network.config.num_classes, network.config.padding_id)
        one = functools.partial(score_batch, forward, network, batches)
        list(pool.map(one, sorted_batches(offsets, batch_rows)))
        return batches.probabilities, batches.weights

    return score


def score_batch(forward: Forward, network: AttentionLSTM, batches: Batches, rows: Rows) -> None:
    """One padded batch, its results put where the rows were."""
    token_ids, lengths = map(torch.from_numpy, batches.padded(rows))
    with torch.inference_mode():
        logits, weights = forward(network, token_ids, lengths)
        batches.keep(rows, logits.softmax(-1).numpy(), weights.numpy())
