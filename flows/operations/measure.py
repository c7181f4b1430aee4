"""What a new checkpoint says of itself: its card, and the README beside it.

Everything measured here is measured on test rows, which training never saw. Knows nothing about registries or Prefect.
"""

import importlib.metadata
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attnlstm.evaluation.metrics import probabilities_of
from storage.labelled.rows import LabelledRows
from storage.labelled.source import LabelledSource, num_rows_of_sides
from storage.labelled.split import TEST
from storage.registry.cards import Card, Data, Figures, Sample, Training

if TYPE_CHECKING:
    from attnlstm.network import AttentionLSTM
    from attnlstm.training.settings import TrainingSettings

_VERSIONS = ("attnlstm", "torch", "numpy", "pyarrow", "safetensors")

SAMPLE_ROWS = 16
"""Test rows whose scores the card keeps, to be met again by what is read back from the registry."""


def make_card(
    network: "AttentionLSTM",
    labelled: LabelledSource,
    rows: LabelledRows,
    training: Training,
    settings: "TrainingSettings",
) -> Card:
    """The card of a trained and calibrated network, save for its version and digest."""
    from attnlstm.engines import open_engine
    from attnlstm.evaluation.drift import reference
    from attnlstm.evaluation.faithfulness import measure
    from attnlstm.evaluation.metrics import evaluate

    classes = network.config.classes
    values, offsets, labels = rows.side(TEST)
    (probabilities,) = probabilities_of([network], classes, values, offsets, settings.threads)
    unscaled = _without_temperature(probabilities, network.config.temperature)
    before_scaling = evaluate(unscaled, labels, classes)["ece"]
    return Card(
        test=Figures.of(evaluate(probabilities, labels, classes) | {"ece_before_scaling": before_scaling}),
        training=training,
        data=_describe(labelled, rows),
        sample=_sample(rows, probabilities),
        drift=reference(values, offsets, probabilities, rows.groups[rows.splits == TEST]),
        faithfulness=measure(open_engine(network).score, values, offsets, seed=settings.seed),
        versions={name: importlib.metadata.version(name) for name in _VERSIONS},
        machine=f"{platform.machine()} {platform.system()}, Python {platform.python_version()}",
    )


def _sample(rows: LabelledRows, probabilities: npt.NDArray[np.float32]) -> Sample:
    """A few test rows, named by the hash of their tokens, and their scores as they were in training."""
    contents = rows.contents[rows.splits == TEST]
    chosen = np.unique(np.linspace(0, len(contents) - 1, min(SAMPLE_ROWS, len(contents))).astype(np.int64))
    return Sample(
        contents=tuple(f"{content:016x}" for content in contents[chosen].tolist()),
        probabilities=tuple(map(tuple, probabilities[chosen].tolist())),
    )


def _without_temperature(probabilities: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float64]:
    """What the probabilities were before the temperature: softmax(z) from softmax(z / temperature)."""
    powers = probabilities.astype(np.float64) ** temperature
    unscaled: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return unscaled


def _describe(labelled: LabelledSource, rows: LabelledRows) -> Data:
    counts = np.bincount(rows.labels, minlength=len(rows.classes)).tolist()
    return Data(
        **labelled.record(),
        since=rows.since,
        num_files=rows.num_files,
        num_unlabelled=rows.num_unlabelled,
        num_unusable=rows.num_unusable,
        left_out=rows.left_out,
        duplicates=asdict(rows.duplicates()),
        split_by=rows.split_by,
        rows=num_rows_of_sides(rows),
        rows_per_class=dict(zip(rows.classes, counts, strict=True)),
    )


def make_readme(card: Card, classes: tuple[str, ...]) -> str:
    """A page about the checkpoint for people."""
    from attnlstm.evaluation.faithfulness import sentence

    test, data = card.test, card.data
    assert test, "a trained checkpoint has figures"
    assert data, "a trained checkpoint has data"
    sources = ", ".join(f"`{each}`" for each in (data.source, *data.also))
    attention = f"{sentence(card.faithfulness)}\n\n" if card.faithfulness else ""
    return (
        "# An attnlstm checkpoint\n\n"
        f"An attention-LSTM over byte sequences with {len(classes)} classes: {', '.join(classes)}.\n\n"
        f"Trained on {data.rows['train']:,} rows of {sources}, stopped on {data.rows['validation']:,}, "
        f"measured on {test.num_rows:,} that it never saw:\n\n"
        "| test accuracy | macro-F1 | log loss | calibration error | commonest class |\n|---|---|---|---|---|\n"
        f"| {test.accuracy:.4f} | {test.macro_f1:.4f} | {test.log_loss:.4f} | {test.ece:.4f} "
        f"| {test.majority_accuracy:.4f} |\n\n"
        f"{_remarks(data)}{attention}"
        "`card.json` has all figures, the settings and the versions. Score with "
        "`attnlstm classify SOURCE OUTPUT --checkpoint THIS_FOLDER`.\n"
    )


def _remarks(data: Data) -> str:
    """What a reader of the figures should know about the rows."""
    duplicates, left_out = data.duplicates, data.left_out
    remarks = []
    if data.num_unlabelled:
        remarks.append(f"{data.num_unlabelled:,} rows without a label were left out.")
    if left_out:
        named = ", ".join(f"{name} ({count:,} rows)" for name, count in left_out.items())
        remarks.append(f"Classes with too few rows to train on were left out: {named}.")
    if duplicates["num_test_rows_seen"]:
        remarks.append(
            f"{duplicates['num_test_rows_seen']:,} test rows have the same tokens as rows of another group that were "
            "trained or stopped on, so the figures flatter."
        )
    if duplicates["num_conflicting"]:
        remarks.append(
            f"{duplicates['num_conflicting_rows']:,} rows have the same tokens as rows of another class, "
            "and no classifier can get all of them right."
        )
    return "".join(f"{remark}\n\n" for remark in remarks)
