"""Tokens a second in training, in turns: the compiled step, the same loop with torch's, and a plain loop of torch's.

All see the same rows, whole, 64 a step, with AdamW. One pass each; what is learned does not matter here.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F

from attnlstm.batching import pad
from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from attnlstm.training import loop
from attnlstm.training.rows import LabelledSequences
from attnlstm.training.settings import TrainingSettings
from end_to_end import Plan
from findings import Findings
from peers.packed_torch import packed_forward
from script import batches_in_file_order, load_network
from turns import describe, ratio, spread
from workloads import CLASSES, HIDDEN_SIZES, Workload, checkpoint, lognormal, ragged

BATCH_ROWS = 64
OURS = "attnlstm.training.loop"


def compare_training(plan: Plan, hidden_sizes: Sequence[int] = HIDDEN_SIZES[:3], num_rows: int = 1000) -> Findings:
    values, offsets = ragged(lognormal(num_rows))
    labels = np.random.default_rng(3).integers(0, len(CLASSES), num_rows)
    labelled = LabelledSequences(values, offsets, labels)
    rows, figures = [], {}
    for hidden_size in hidden_sizes:
        config = load_network(checkpoint(Workload("lognormal", 0, hidden_size), plan.folder)).config
        ways = {
            OURS: partial(_ours, config, labelled, plan.threads),
            f"{OURS}, torch's step": partial(_ours, config, labelled, plan.threads, compiled=False),
            f"PackedSequence, {plan.threads} threads": partial(_plain_loop, config, labelled, plan.threads),
        }
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way()  # the first pass sets up threads and memory
        for _ in range(plan.rounds):
            for name, way in ways.items():
                speeds[name].append(way() / 1e6)
        for name, speed in speeds.items():
            times = ratio(speeds[OURS], speed)
            rows.append([f"hidden {hidden_size}, {name}", describe(spread(speed)), describe(times)])
            figures[f"{hidden_size}: {name}"] = {
                "million_tokens_per_second": spread(speed),
                "times_slower_than_ours": times,
            }
    notes = [f"{num_rows:,} rows of lognormal lengths, batches of {BATCH_ROWS}"]
    return Findings("Training", ["training", "Mtokens/s", "times slower than ours"], rows, notes, figures)


def _ours(config: ModelConfig, labelled: LabelledSequences, threads: int, *, compiled: bool = True) -> float:
    few = LabelledSequences(labelled.values[: labelled.offsets[1]], labelled.offsets[:2], labelled.labels[:1])
    settings = TrainingSettings(epochs=1, crop_tokens=None, batch_rows=BATCH_ROWS, threads=threads, device="cpu")
    with nullcontext() if compiled else patch.object(loop, "why_not_fused", lambda network: "torch is measured"):
        return loop.train(config, settings, labelled, few).epochs[0].tokens_per_second


def _plain_loop(config: ModelConfig, labelled: LabelledSequences, threads: int) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = AttentionLSTM(config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    began = time.perf_counter()
    order = np.random.default_rng(0).permutation(len(labelled))
    for batch in batches_in_file_order(labelled.offsets, BATCH_ROWS):
        token_ids, lengths = map(
            torch.from_numpy, pad(labelled.values, labelled.offsets, order[batch], config.padding_id)
        )
        logits, _ = packed_forward(network, token_ids, lengths)
        loss = F.cross_entropy(logits, torch.from_numpy(labelled.labels[order[batch]]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - began
    torch.set_num_threads(before)
    return len(labelled.values) / seconds
