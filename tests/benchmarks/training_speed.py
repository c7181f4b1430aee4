"""Tokens a second in training: `attnlstm.training.loop` against a plain loop with PackedSequence, in turns.

Both see the same rows, whole, 64 a step, with AdamW. One pass each; what is learned does not matter here.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F

from attnlstm.batching import pad
from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from attnlstm.training.loop import train
from attnlstm.training.rows import LabelledSequences
from attnlstm.training.settings import TrainingSettings
from end_to_end import Plan
from findings import Findings
from peers.packed_torch import packed_forward
from script import batches_in_file_order
from turns import describe, ratio, spread
from workloads import CLASSES, lognormal, ragged

CONFIG = ModelConfig(classes=CLASSES)
BATCH_ROWS = 64


def compare_training(plan: Plan, num_rows: int = 2000) -> Findings:
    kinds = {"lognormal": lognormal(num_rows), "512 tokens": np.full(num_rows, 512)}
    rows, figures = [], {}
    for kind, lengths in kinds.items():
        values, offsets = ragged(lengths)
        labels = np.random.default_rng(3).integers(0, len(CLASSES), num_rows)
        labelled = LabelledSequences(values, offsets, labels)
        ways = {
            "attnlstm.training.loop": lambda data=labelled: _ours(data, plan.threads),
            f"PackedSequence, {plan.threads} threads": lambda data=labelled: _plain_loop(data, plan.threads),
            "PackedSequence, 1 thread": lambda data=labelled: _plain_loop(data, 1),
        }
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way()  # the first pass sets up threads and memory
        for _ in range(plan.rounds):
            for name, way in ways.items():
                speeds[name].append(way() / 1e6)
        for name, speed in speeds.items():
            times = ratio(speeds["attnlstm.training.loop"], speed)
            rows.append([f"{kind}, {name}", describe(spread(speed)), describe(times)])
            figures[f"{kind}: {name}"] = {"million_tokens_per_second": spread(speed), "times_slower_than_ours": times}
    header = ["training", "Mtokens/s", "times slower than ours"]
    return Findings("Training", header, rows, [f"{num_rows:,} rows, batches of {BATCH_ROWS}, hidden 16"], figures)


def _ours(labelled: LabelledSequences, threads: int) -> float:
    few = LabelledSequences(labelled.values[: labelled.offsets[1]], labelled.offsets[:2], labelled.labels[:1])
    settings = TrainingSettings(epochs=1, crop_tokens=None, batch_rows=BATCH_ROWS, threads=threads)
    return train(CONFIG, settings, labelled, few).epochs[0].tokens_per_second


def _plain_loop(labelled: LabelledSequences, threads: int) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = AttentionLSTM(CONFIG)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    began = time.perf_counter()
    order = np.random.default_rng(0).permutation(len(labelled))
    for batch in batches_in_file_order(labelled.offsets, BATCH_ROWS):
        token_ids, lengths = map(
            torch.from_numpy, pad(labelled.values, labelled.offsets, order[batch], CONFIG.padding_id)
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
