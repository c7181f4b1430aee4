"""What a new checkpoint says of itself: its card, and the README beside it.

Everything measured here is measured on test rows, which a training here never saw. Knows nothing about registries or
Prefect.
"""

import importlib.metadata
import platform
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from attnlstm.evaluation.abstention import LADDER, coverage_and_accuracy, precision_steps, thresholds_of
from attnlstm.evaluation.chance import FEWEST_ROWS, accuracy_interval
from attnlstm.evaluation.comparison import CONFIDENCE
from attnlstm.evaluation.metrics import evaluate, probabilities_of
from storage.labelled.rows import LabelledRows
from storage.labelled.source import LabelledSource, num_rows_of_sides
from storage.labelled.split import TEST, VALIDATION
from storage.labelled.vocabulary import Outside
from storage.registry.cards import Abstention, AtThreshold, Card, Data, Figures, Sample, Training

if TYPE_CHECKING:
    from attnlstm.config import ModelConfig
    from attnlstm.network import AttentionLSTM
    from attnlstm.training.settings import TrainingSettings

_VERSIONS = ("attnlstm", "torch", "numpy", "pyarrow", "safetensors")

_SHOWN_THRESHOLD = 0.9

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
    measured = measure_network(network, rows, threads=settings.threads, seed=settings.seed)
    return replace(measured, training=training, data=_describe(labelled, rows))


def blank_card() -> Card:
    """What any card says of where it was made."""
    return Card(
        versions={name: importlib.metadata.version(name) for name in _VERSIONS},
        machine=f"{platform.machine()} {platform.system()}, Python {platform.python_version()}",
    )


def measure_network(network: "AttentionLSTM", rows: LabelledRows, *, threads: int | None = None, seed: int = 0) -> Card:
    """What a network does on the test rows, all of which it can score.

    It may know other classes than the rows have: a row of a class that it does not know is one that it gets wrong.
    """
    from attnlstm.engines import open_engine
    from attnlstm.evaluation.drift import reference
    from attnlstm.evaluation.faithfulness import measure

    own = network.config.classes
    values, offsets, labels = rows.side(TEST)
    (probabilities,) = probabilities_of([network], own, values, offsets, threads)
    known, known_offsets, known_labels = rows.side(VALIDATION)
    (of_known,) = probabilities_of([network], own, known, known_offsets, threads)
    unscaled = _without_temperature(probabilities, network.config.temperature)
    classes = (*rows.classes, *(name for name in own if name not in rows.classes))
    places = [classes.index(name) for name in own]
    as_own = np.array([own.index(name) if name in own else len(own) for name in rows.classes])
    groups = rows.groups[rows.splits == TEST]

    def figures(of_own: npt.NDArray[np.floating]) -> Figures:
        of_all = np.zeros((len(of_own), len(classes)), of_own.dtype)
        of_all[:, places] = of_own
        return figures_of(of_all, labels, classes, groups)

    return replace(
        blank_card(),
        test=replace(figures(probabilities), ece_before_scaling=figures(unscaled).ece),
        sample=_sample(rows, probabilities),
        abstention=_abstention(own, probabilities, as_own[labels], of_known, as_own[known_labels]),
        drift=reference(values, offsets, probabilities, groups),
        faithfulness=measure(open_engine(network).score, values, offsets, seed=seed),
    )


def _abstention(
    classes: tuple[str, ...],
    probabilities: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer],
    of_known: npt.NDArray[np.float32],
    known_labels: npt.NDArray[np.integer],
) -> Abstention:
    """What withholding predictions does to the test rows, by what the validation rows say. A label may be no class."""
    steps = dict(zip(classes, precision_steps(of_known, known_labels), strict=True))

    def at(wanted: float, prefix: str) -> AtThreshold:
        thresholds = thresholds_of(f"{prefix}{wanted}", classes, steps)
        coverage, accuracy = coverage_and_accuracy(probabilities, labels, thresholds)
        return AtThreshold(wanted=wanted, coverage=coverage, accuracy=accuracy)

    return Abstention(
        scores=tuple(at(wanted, "") for wanted in LADDER),
        precisions=tuple(at(wanted, "precision=") for wanted in LADDER),
        by_class={name: tuple(found) for name, found in steps.items()},
    )


def abstention_in_words(abstention: Abstention) -> str:
    """What is left if a score or a precision is asked for, such as 0.9."""
    texts = []
    for what, found in (("a score of", abstention.scores), ("a precision of", abstention.precisions)):
        each = next(at for at in found if at.wanted == _SHOWN_THRESHOLD)
        right = f", {each.accuracy:.1%} of them right" if each.accuracy is not None else ""
        texts.append(f"{what} {each.wanted:g} leaves {each.coverage:.1%} of the test rows a prediction{right}")
    return "; ".join(texts)


def figures_of(
    probabilities: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    classes: tuple[str, ...],
    groups: npt.NDArray[np.integer],
) -> Figures:
    """What `evaluate` measures, and how sure one can be of the accuracy.

    groups: (N,), equal where rows belong together; all else as there.
    """
    interval = accuracy_interval(probabilities.argmax(axis=1) == labels, groups)
    return Figures.of(evaluate(probabilities, labels, classes) | {"accuracy_interval": interval})


def how_sure(figures: Figures) -> str:
    """How much the accuracy says, in words; "" on a card of an earlier version, which does not know."""
    if figures.accuracy_interval is None:
        return ""
    low, high = figures.accuracy_interval
    few = "few, " if figures.num_rows < FEWEST_ROWS else ""
    return f"{few}accuracy {low:.2f} to {high:.2f} with {CONFIDENCE:.0%} confidence"


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
        outside=asdict(rows.outside) if rows.outside else None,
        left_out=rows.left_out,
        duplicates=asdict(rows.duplicates()),
        split_by=rows.split_by,
        rows=num_rows_of_sides(rows),
        rows_per_class=dict(zip(rows.classes, counts, strict=True)),
    )


def make_readme(card: Card, config: "ModelConfig", measured_on: str = "") -> str:
    """A page about the checkpoint for people. measured_on: the source of the test rows, of one from elsewhere."""
    from attnlstm.evaluation.faithfulness import sentence

    test, data, classes = card.test, card.data, config.classes
    ids = "byte sequences" if config.padding_id == 256 else f"sequences of token ids from 0 to {config.padding_id - 1}"
    paragraphs = [
        "# An attnlstm checkpoint",
        f"An attention-LSTM over {ids} with {len(classes)} classes: {', '.join(classes)}.",
    ]
    if data:
        sources = ", ".join(f"`{each}`" for each in (data.source, *data.also))
        paragraphs.append(
            f"Trained on {data.rows['train']:,} rows of {sources}, stopped on {data.rows['validation']:,}."
        )
    elif card.added_from:
        paragraphs.append(f"Added from `{card.added_from}`; what it was trained on is not known here.")
    if test:
        elsewhere = f"test rows of `{measured_on}`" if measured_on else "test rows"
        what = "that it never saw" if data else elsewhere
        paragraphs += [
            f"Measured on {test.num_rows:,} {what}:",
            "| test accuracy | macro-F1 | log loss | calibration error | commonest class |\n|---|---|---|---|---|\n"
            f"| {test.accuracy:.4f} | {test.macro_f1:.4f} | {test.log_loss:.4f} | {test.ece:.4f} "
            f"| {test.majority_accuracy:.4f} |",
        ]
        if words := how_sure(test):
            paragraphs.append(f"{test.num_rows:,} rows show so much: {words}.")
    if card.abstention:
        paragraphs.append(f"{abstention_in_words(card.abstention).capitalize()} (`classify --abstain-below`).")
    paragraphs += _remarks(data) if data else []
    if card.faithfulness:
        paragraphs.append(sentence(card.faithfulness))
    paragraphs.append(
        "`card.json` has all figures, the settings and the versions. Score with "
        "`attnlstm classify SOURCE OUTPUT --checkpoint THIS_FOLDER`."
    )
    return "\n\n".join(paragraphs) + "\n"


def left_out_in_words(data: Data) -> str:
    """How many rows are in no part of the split, and why; "" if there are none."""
    reasons = []
    if data.num_unlabelled:
        reasons.append(f"{data.num_unlabelled:,} without a label")
    if data.num_unusable:
        reasons.append(f"{data.num_unusable:,} whose tokens can't be scored")
    if data.outside:
        outside = Outside(**data.outside)
        reasons[-1] += f" ({outside.num_rows:,} with token ids outside the vocabulary, {outside.which})"
    return ", ".join(reasons)


def _remarks(data: Data) -> list[str]:
    """What a reader of the figures should know about the rows."""
    duplicates, left_out = data.duplicates, data.left_out
    remarks = []
    if words := left_out_in_words(data):
        remarks.append(f"Rows that were left out: {words}.")
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
    return remarks
