"""A checkpoint as `retrain` would make it against byte n-grams with logistic regression, on the same held-out rows.

    python tests/benchmarks/accuracy.py FOLDER... [--preset NAME ...] [--seeds N] [--without ngrams averaging]

Each FOLDER holds labelled Parquet with the columns `tokens` and `label` (and `group` if there is one). Its test side is
that of the product's split, or `test.parquet` where there is one beside `train.parquet`. The network trains on the
train side, stops and is calibrated by the validation side, and never sees the rest; the regression gets both. Prints a
Markdown table of figures on the test rows, and for several seeds their mean and standard deviation. "Faithful" is what
the card measures: how much further the predicted class's probability falls when the most attended tokens are erased,
and not random ones. Needs the extra `test`.
"""

import argparse
import math
import statistics
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from attnlstm.engines import open_engine
from attnlstm.evaluation.faithfulness import measure as measure_faithfulness
from attnlstm.evaluation.metrics import evaluate
from attnlstm.process import num_cores
from attnlstm.training.loop import train
from attnlstm.training.rows import LabelledSequences
from attnlstm.training.settings import DEFAULT, PRESETS, Preset, preset
from storage.labelled.rows import SIDES, LabelledRows
from storage.labelled.source import read_labelled
from storage.labelled.split import TEST, TRAIN, VALIDATION

FIGURES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "log_loss": "log loss",
    "ece_before": "ECE before",
    "ece": "ECE after",
    "faithful": "faithful",
}
"""Columns, by the names of figures."""

PENALTIES = (1.0, 10.0, 100.0)
"""Values of C. One is scikit-learn's own choice; the others suit n-grams, most of which are rare."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="of labelled Parquet")
    parser.add_argument("--preset", choices=list(PRESETS), nargs="+", default=[DEFAULT])
    parser.add_argument("--seeds", type=int, default=1, help="networks to train, of seeds 0, 1, ...")
    parser.add_argument(
        "--without", choices=["ngrams", "averaging"], nargs="+", default=[], help="of what a preset has"
    )
    parser.add_argument("--threads", type=int, default=num_cores())
    arguments = parser.parse_args()

    print("| test rows of | how | " + " | ".join(FIGURES.values()) + " | epochs | seconds |")
    print("|" + "---|" * (4 + len(FIGURES)))
    for folder in arguments.folders:
        has_test = (folder / "test.parquet").exists()
        rows = read_labelled(str(folder / "train.parquet" if has_test else folder))
        known = sides_of(rows, SIDES if has_test else (TRAIN, VALIDATION))
        test = sides_of(rows, (TEST,))
        if has_test:
            others = read_labelled(str(folder / "test.parquet"))
            test = sides_of(others, SIDES, classes=rows.classes)
        for C in PENALTIES:
            show(folder, f"byte 1-4-grams, logistic regression, C = {C:g}", measure_baseline(known, test, rows, C))
        for name in arguments.preset:
            chosen = without(preset(name), arguments.without)
            how = " without ".join([f"attention-LSTM, {name}", *arguments.without])
            found = []
            for seed in range(arguments.seeds):
                found.append(measure_ours(rows, test, chosen, seed, arguments.threads))
                show(folder, f"{how}, seed {seed}", found[-1])
            if len(found) > 1:
                show(folder, f"{how}, mean", {name: statistics.mean(each[name] for each in found) for name in FIGURES})
                spread = {name: statistics.stdev(each[name] for each in found) for name in FIGURES}
                show(folder, f"{how}, standard deviation", spread)


def show(folder: Path, how: str, figures: dict[str, Any]) -> None:
    cells = [f"{figures[name]:.4f}" if name in figures else "" for name in FIGURES]
    more = [figures.get("epochs", ""), figures.get("seconds", "")]
    print(f"| {folder.name} | {how} | " + " | ".join([*cells, *map(str, more)]) + " |", flush=True)


def without(chosen: Preset, left_out: list[str]) -> Preset:
    """The preset without what is to be left out."""
    network = {name: value for name, value in chosen.network.items() if "ngram" not in name or "ngrams" not in left_out}
    training = {name: value for name, value in chosen.training.items() if name not in left_out}
    return replace(chosen, network=network, training=training)


def sides_of(
    rows: LabelledRows, sides: tuple[int, ...], *, classes: tuple[str, ...] | None = None
) -> LabelledSequences:
    """The rows of some sides. classes: another order of labels."""
    which, values, offsets = rows.sides(sides)
    order = np.array([(classes or rows.classes).index(name) for name in rows.classes])
    return LabelledSequences(values, offsets, order[rows.labels[which]])


def measure_baseline(known: LabelledSequences, test: LabelledSequences, rows: LabelledRows, C: float) -> dict[str, Any]:
    began = time.monotonic()
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), lowercase=False)
    features = vectorizer.fit_transform(texts(known))
    model = LogisticRegression(C=C, max_iter=1000).fit(features, known.labels)
    probabilities = np.zeros((len(test), len(rows.classes)))
    probabilities[:, model.classes_] = model.predict_proba(vectorizer.transform(texts(test)))
    figures = evaluate(probabilities, test.labels, rows.classes)
    return {**figures, "seconds": f"{time.monotonic() - began:.0f}"}


def texts(rows: LabelledSequences) -> list[str]:
    """A character for each token."""
    text = "".join(map(chr, rows.values.tolist()))
    return [text[start:end] for start, end in pairwise(rows.offsets.tolist())]


def measure_ours(
    rows: LabelledRows, test: LabelledSequences, chosen: Preset, seed: int, threads: int
) -> dict[str, Any]:
    validation = LabelledSequences(*rows.side(VALIDATION))
    settings = chosen.settings(seed=seed, threads=threads)
    result = train(chosen.config(rows.classes), settings, LabelledSequences(*rows.side(TRAIN)), validation)
    score = open_engine(result.calibrated(), threads=threads).score
    before, after = (
        evaluate(scorer(test.values, test.offsets).probabilities, test.labels, rows.classes)
        for scorer in (open_engine(result.network, threads=threads).score, score)
    )
    epochs = f"{result.best_epoch} of {len(result.epochs)}"
    faithful = measure_faithfulness(score, test.values, test.offsets, seed=0)
    return {
        **after,
        "ece_before": before["ece"],
        "faithful": faithful["comprehensiveness"]["gain"]["mean"] if faithful else math.nan,
        "epochs": epochs,
        "seconds": f"{result.seconds:.0f}",
    }


if __name__ == "__main__":
    main()
