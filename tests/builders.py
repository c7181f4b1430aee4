"""What tests in several places need to have: networks and what their scores must be, registries with a champion,
sources of random rows, the files of an output, and the command.

Imported by tests, and by the processes that some of them start. Knows the packages, and nothing of flows or pytest.
"""

import copy
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from attnlstm.checkpoint import to_files
from attnlstm.config import ModelConfig
from attnlstm.engines import Scores
from attnlstm.network import AttentionLSTM
from storage.locations import Location
from storage.output.layout import STAMP_KEY
from storage.output.manifests import RunManifest
from storage.registry.cards import Card
from storage.registry.checkpoints import Registry

Files = dict[str, bytes]

COMMAND = [sys.executable, "-c", "from flows.cli.app import main; main()"]
"""`attnlstm`, in a process of its own."""


class StoppedError(Exception):
    """What a test raises where a process would be killed."""


def make_network(**sizes: object) -> AttentionLSTM:
    """A network in evaluation mode whose sizes are primes, with weights large enough to move its gates."""
    torch.manual_seed(17)
    config = ModelConfig(**{"num_embeddings": 43, "embedding_dim": 7, "classes": tuple("abcde"), **sizes})  # type: ignore[arg-type]
    network = AttentionLSTM(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
        if config.longest_ngram > 1:
            network.ngrams.normal_()
    return network


def make_rows(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets of rows of these lengths, of token ids that the networks know."""
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return np.random.default_rng(19).integers(0, 42, offsets[-1]).astype(np.uint8), offsets


@torch.no_grad()
def check_scores(
    network: AttentionLSTM,
    scores: Scores,
    values: np.ndarray,
    offsets: np.ndarray,
    atol: float = 1e-6,
) -> None:
    """The scores are what the network gives for each row alone in float64."""
    exact = copy.deepcopy(network).double()
    for row, (start, end) in enumerate(pairwise(offsets)):
        token_ids = torch.from_numpy(values[start:end].astype(np.int64))[None]
        logits, weights = exact(token_ids, torch.tensor([end - start]))
        probabilities = (logits[0] / network.config.temperature).softmax(0).numpy()
        np.testing.assert_allclose(scores.probabilities[row], probabilities, rtol=0, atol=atol)
        np.testing.assert_allclose(scores.attention_weights[start:end], weights[0].numpy(), rtol=0, atol=atol)


def bits(scores: Scores) -> tuple[bytes, bytes]:
    """For comparisons to the last bit."""
    return scores.probabilities.tobytes(), scores.attention_weights.tobytes()


def make_champion(registry: Path | str, network: AttentionLSTM) -> str:
    """Publish a network in a registry and make it the champion. Gives its version."""
    opened = Registry.open(str(registry))
    version = opened.publish(to_files(network), Card(), "# A test's checkpoint\n").version
    opened.promote(version, "a test")
    return version


def save_checkpoint(folder: Path, network: AttentionLSTM) -> Path:
    """Write a network's files into a new folder, outside of any registry."""
    folder.mkdir(parents=True)
    for name, content in to_files(network).items():
        (folder / name).write_bytes(content)
    return folder


def write_random_rows(folder: Path, names: Iterable[str], num_rows: int = 100, num_tokens: int = 200) -> Path:
    """A source of files of these names, each of which takes the registry that is slow a part of a second."""
    random = np.random.default_rng(5)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        rows = pa.array([random.bytes(num_tokens) for _ in range(num_rows)], pa.binary())
        pq.write_table(pa.table({"tokens": rows}), folder / name)
    return folder


def scored_files(output: Path | str) -> Files:
    """Everything below the predictions and attention of an output: whole files and, were there any, temporary ones."""
    root = Location.parse(output)
    files = [file for kind in ("predictions", "attention") for file in (root / kind).files()]
    return {root.relative(file.path): file.read_bytes() for file in files}


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], **stamp: object) -> None:
    """Write a file of an output anew with other rows, and its metadata but for these fields of its stamp."""
    metadata = {key: value for key, value in pq.read_metadata(path).metadata.items() if key != b"ARROW:schema"}
    if stamp:
        metadata[STAMP_KEY.encode()] = json.dumps(json.loads(metadata[STAMP_KEY.encode()]) | stamp).encode()
    pq.write_table(change(pq.read_table(path, partitioning=None)).replace_schema_metadata(metadata), path)


def set_value(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    """A change of one value: to another one, or to what a function makes of it."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        field = table.schema.field(column)
        return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))

    return change


def make_manifest(**others: Any) -> RunManifest:
    """The record of a run that scored nothing and has nothing to tell. others: fields that it has otherwise."""
    plain = RunManifest(
        run_id="3f2a",
        run_name="brave-fox",
        state="completed",
        started="2026-11-22T07:00:00+00:00",
        ended="2026-11-22T07:00:09+00:00",
        source="/data",
        output="/out",
        mode="missing",
        checkpoint="v1",
        checkpoint_digest="d" * 32,
        settings={"max_tokens": None},
        engine="torch on cpu",
        workers=2,
        num_up_to_date=5,
        seconds=2.0,
    )
    return replace(plain, **others)
