"""The usual torch script: PackedSequence, by 32 rows in file order (naive) or sorted by length.

Packing keeps the backward direction from reading padding, which a plain bidirectional call does.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from attnlstm.network import AttentionLSTM
from peers.sorted_torch import open_sorted, score_batch
from script import (
    Batches,
    Floats,
    Offsets,
    Score,
    Task,
    Values,
    batches_in_file_order,
    load_network,
)

CANDIDATES: list[dict[str, Any]] = [
    *({"batch_rows": rows, "side_by_side": True} for rows in (64, 256, 1024)),
    {"batch_rows": 256, "side_by_side": False},
]
NAIVE: list[dict[str, Any]] = [{"all_cores": True}, {"all_cores": False}]


def open_naive(task: Task, all_cores: bool) -> Score:
    """32 rows at a time, in file order, one batch after the other."""
    torch.set_num_threads(task.threads if all_cores else 1)
    network = load_network(task.checkpoint)

    def score(values: Values, offsets: Offsets) -> tuple[Floats, Floats]:
        batches = Batches(values, offsets, network.config.num_classes, network.config.padding_id)
        for rows in batches_in_file_order(offsets, 32):
            score_batch(packed_forward, network, batches, rows)
        return batches.probabilities, batches.weights

    return score


def open_peer(task: Task, batch_rows: int, side_by_side: bool) -> Score:
    """Sorted by length; batches go to threads of one core each, or each batch to all cores."""
    return open_sorted(packed_forward, task, batch_rows, side_by_side)


def packed_forward(network: AttentionLSTM, token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and attention weights, computed as torch's documentation shows it."""
    packed = pack_padded_sequence(network.embedding(token_ids), lengths, batch_first=True, enforce_sorted=False)
    states, _ = pad_packed_sequence(network.sequence(packed)[0], batch_first=True)
    mask = torch.arange(token_ids.shape[1]) < lengths[:, None]
    context, weights = network.attention(states, mask)
    return network.mlp(context), weights
