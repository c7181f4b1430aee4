"""ONNX Runtime on batches sorted by length: its LSTM takes the lengths of rows, so padding is no matter.

The graph is the one that `attnlstm checkpoints export` gives away. Batches go to threads of one core each, or each
batch to all cores.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime

from attnlstm.network import AttentionLSTM
from attnlstm.onnx_graph import to_onnx
from script import Batches, Floats, Offsets, Rows, Score, Task, Values, load_network, sorted_batches

CANDIDATES: list[dict[str, Any]] = [
    *({"batch_rows": rows, "side_by_side": True} for rows in (16, 64, 256, 1024)),
    {"batch_rows": 256, "side_by_side": False},
]


def open_peer(task: Task, batch_rows: int, side_by_side: bool) -> Score:
    network = load_network(task.checkpoint)
    workers, threads = (task.threads, 1) if side_by_side else (1, task.threads)
    session = open_session(network, threads)
    pool = ThreadPoolExecutor(workers)

    def score(values: Values, offsets: Offsets) -> tuple[Floats, Floats]:
        batches = Batches(values, offsets, network.config.num_classes, network.config.padding_id)

        def forward(rows: Rows) -> None:
            token_ids, _ = batches.padded(rows)
            batches.keep(rows, *session.run(None, {"token_ids": token_ids.astype(np.int64)}))

        list(pool.map(forward, sorted_batches(offsets, batch_rows)))
        return batches.probabilities, batches.weights

    return score


def open_session(network: AttentionLSTM, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    graph = to_onnx(network).SerializeToString()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
