"""What the embeddings of n-grams cost: the engine with and without them, on one core, in turns.

Rows of real bytes, as the demo samples them: which rows of a table are near in the cache depends on the data.
"""

import time

import numpy as np
import pyarrow.dataset as ds
import torch

from attnlstm.config import ModelConfig
from attnlstm.engines.fused_cpu import FusedCpuEngine
from attnlstm.network import AttentionLSTM
from attnlstm.training.settings import DEFAULT, preset
from end_to_end import Plan
from findings import Findings
from script import tokens_of
from turns import describe, ratio
from workloads import CLASSES, Workload, dataset

SIZES = (16, 32, 64)
FIELDS = ("longest_ngram", "ngram_buckets")


def compare_ngrams(plan: Plan, num_rows: int = 2000) -> Findings:
    source = dataset(Workload("sample", num_rows), plan.folder)
    values, offsets = tokens_of(ds.dataset(source, format="parquet").to_table(["tokens"])["tokens"].combine_chunks())
    of_ngrams = {name: preset(DEFAULT).network[name] for name in FIELDS}
    rows, figures = [], {}
    for hidden_size in SIZES:
        engines = {
            "without": FusedCpuEngine(_network(hidden_size)),
            "with": FusedCpuEngine(_network(hidden_size, **of_ngrams)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(plan.rounds + 1):
            for name, engine in engines.items():
                began = time.process_time()
                engine.score(values, offsets)
                if turn:  # the first one warms up
                    seconds[name].append(time.process_time() - began)
        cost = ratio(seconds["with"], seconds["without"])
        rows.append([f"{hidden_size}", f"{len(values) / min(seconds['with']) / 1e6:.3g}", describe(cost)])
        figures[f"{hidden_size}"] = cost
    header = ["hidden size", "million tokens a second, with n-grams", "times as long as without"]
    return Findings("Embeddings of n-grams", header, rows, ["One core, by CPU time", f"{of_ngrams}"], figures)


def _network(hidden_size: int, **of_ngrams: int) -> AttentionLSTM:
    torch.manual_seed(5)
    network = AttentionLSTM(ModelConfig(classes=CLASSES, embedding_dim=16, hidden_size=hidden_size, **of_ngrams))
    if of_ngrams:
        with torch.no_grad():
            network.ngrams.copy_(torch.from_numpy(np.random.default_rng(5).normal(0, 0.1, network.ngrams.shape)))
    return network
