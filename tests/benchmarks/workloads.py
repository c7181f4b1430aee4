"""What is scored in the benchmarks: Parquet datasets of known lengths, and networks with random weights from a seed.

Owns how both are made; each is made once and found again. Knows nothing about who scores them.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from attnlstm.checkpoint import to_files
from attnlstm.config import ModelConfig
from attnlstm.network import AttentionLSTM
from flows.cli.sample import write_sample

HIDDEN_SIZES = (32, 16, 64, 128, 256)
"""That of the default preset first, and then that of the published network; all without n-grams."""

LONGEST = 4096
ROWS_PER_FILE = 100_000
FEWEST_FILES = 4
"""So that what works file by file has work for several cores."""

CLASSES = ("a", "b", "c", "d")
WEIGHT_SCALE = 2.5
"""As they start, weights leave attention and probabilities almost uniform, and a wrong answer would look right."""

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """A dataset and the sizes of the network that scores it.

    lengths: "lognormal", "brief", "sample", "short" or "long"; see LENGTHS.
    """

    lengths: str
    rows: int
    hidden_size: int = HIDDEN_SIZES[0]

    @property
    def name(self) -> str:
        return f"{self.lengths}, hidden {self.hidden_size}"


def lognormal(rows: int, median: int = 200) -> Lengths:
    """Sigma 1, 1 to LONGEST: the lengths of texts, reads and log lines look like this."""
    drawn = np.random.default_rng(7).lognormal(np.log(median), 1, rows)
    return np.clip(drawn, 1, LONGEST).astype(np.int64)


LENGTHS: dict[str, Callable[[int], Lengths]] = {
    "lognormal": lognormal,
    "brief": lambda rows: lognormal(rows, median=20),
    "short": lambda rows: np.full(rows, 16),
    "long": lambda rows: np.full(rows, LONGEST),
}
"""Tokens of each row, by kind of dataset. "sample" is not among them: its rows are 512 real bytes each."""


def dataset(workload: Workload, folder: Path) -> Path:
    """The folder of the workload's Parquet files: columns `id` and `tokens` (binary), and what a sample has."""
    place = folder / f"{workload.lengths}-{workload.rows}"
    if not place.exists():
        unfinished = place.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        if workload.lengths == "sample":
            write_sample(unfinished, rows=workload.rows, fragment_bytes=512, days=7, start=date(2026, 1, 1))
        else:
            _write_random(unfinished, LENGTHS[workload.lengths](workload.rows))
        unfinished.rename(place)
    return place


def _write_random(place: Path, lengths: Lengths) -> None:
    place.mkdir(parents=True)
    random = np.random.default_rng(11)
    num_files = max(FEWEST_FILES, -(-len(lengths) // ROWS_PER_FILE))
    for number, rows in enumerate(np.array_split(np.arange(len(lengths)), num_files)):
        offsets = np.concatenate(([0], np.cumsum(lengths[rows]))).astype(np.int32)
        tokens = pa.py_buffer(random.integers(0, 256, offsets[-1], dtype=np.uint8))
        column = pa.Array.from_buffers(pa.binary(), len(rows), [None, pa.py_buffer(offsets), tokens])
        # No dictionary, which random bytes would only fill.
        table = pa.table({"id": rows, "tokens": column})
        pq.write_table(table, place / f"part-{number:04d}.parquet", use_dictionary=False)


def checkpoint(workload: Workload, folder: Path) -> Path:
    """The folder of a checkpoint with the workload's hidden size, and embeddings as wide as those of its preset."""
    hidden_size, embedding_dim = workload.hidden_size, min(workload.hidden_size // 2, 32)
    place = folder / f"checkpoint-{hidden_size}-{embedding_dim}"
    if not place.exists():
        torch.manual_seed(5)
        network = AttentionLSTM(ModelConfig(classes=CLASSES, embedding_dim=embedding_dim, hidden_size=hidden_size))
        for parameter in network.parameters():
            parameter.data *= WEIGHT_SCALE
        unfinished = place.with_suffix(".unfinished")
        unfinished.mkdir(parents=True, exist_ok=True)
        for name, content in to_files(network).items():
            (unfinished / name).write_bytes(content)
        unfinished.rename(place)
    return place


def ragged(lengths: Lengths) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Random tokens in rows of these lengths, as `Engine.score` takes them: values and offsets."""
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return np.random.default_rng(13).integers(0, 256, offsets[-1], dtype=np.uint8), offsets
