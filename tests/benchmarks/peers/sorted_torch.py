"""A good torch script: rows sorted by length, padded, the backward direction run over reversed rows, so that oneDNN
computes the LSTM. Batches go to threads of one core each, or each batch to all cores.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from script import Batches, Floats, Offsets, Rows, Score, Task, Values, load_network, sorted_batches

CANDIDATES: list[dict[str, Any]] = [
    *({"batch_rows": rows, "side_by_side": True} for rows in (16, 64, 256, 1024)),
    {"batch_rows": 256, "side_by_side": False},
]


def open_peer(task: Task, batch_rows: int, side_by_side: bool) -> Score:
    workers, threads = (task.threads, 1) if side_by_side else (1, task.threads)
    torch.set_num_threads(threads)
    network = load_network(task.checkpoint)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))

    def score(values: Values, offsets: Offsets) -> tuple[Floats, Floats]:
        batches = Batches(values, offsets, network.config.num_classes, network.config.padding_id)

        def forward(rows: Rows) -> None:
            token_ids, lengths = map(torch.from_numpy, batches.padded(rows))
            with torch.inference_mode():
                logits, weights = network(token_ids, lengths)
                batches.keep(rows, logits.softmax(-1).numpy(), weights.numpy())

        list(pool.map(forward, sorted_batches(offsets, batch_rows)))
        return batches.probabilities, batches.weights

    return score
