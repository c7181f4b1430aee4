"""A checkpoint as `retrain` would make it against byte n-grams with logistic regression, on the same held-out rows.

    python tests/benchmarks/accuracy.py FOLDER... [--preset NAME] [--seeds N]

Each FOLDER holds `train.parquet` and `test.parquet` with the columns `tokens` and `label`. The network gets the
train side of the first file's own split, stops and is calibrated by its validation side, and never sees the rest; the
regression gets the whole file. Prints a Markdown table of figures on the second file. Needs the extra `test`.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from attnlstm.engines import open_engine
from attnlstm.evaluation.metrics import evaluate
from attnlstm.training.loop import TrainingResult, train
from attnlstm.training.rows import LabelledSequences
from attnlstm.training.settings import DEFAULT, PRESETS, preset
from storage.labelled.rows import SIDES, LabelledRows
from storage.labelled.source import read_labelled
from storage.labelled.split import TRAIN, VALIDATION

PENALTIES = (1.0, 10.0, 100.0)
"""Values of C. One is scikit-learn's own choice; the others suit n-grams, most of which are rare."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="with train.parquet and test.parquet")
    parser.add_argument("--preset", choices=list(PRESETS), default=DEFAULT)
    parser.add_argument("--seeds", type=int, default=1, help="networks to train, of seeds 0, 1, ...")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()

    print("| test rows of | how | accuracy | macro-F1 | log loss | ECE before | ECE after | epochs | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for folder in arguments.folders:
        rows = read_labelled(str(folder / "train.parquet"))
        test = all_rows(read_labelled(str(folder / "test.parquet")), rows.classes)
        for C in PENALTIES:
            show(folder, f"byte 1-4-grams, logistic regression, C = {C:g}", measure_baseline(rows, test, C))
        for seed in range(arguments.seeds):
            show(folder, f"attention-LSTM, {arguments.preset}, seed {seed}", measure_ours(rows, test, seed, arguments))


def show(folder: Path, how: str, figures: dict[str, Any]) -> None:
    shown = [figures[name] for name in ("accuracy", "macro_f1", "log_loss")]
    shown += [figures.get("ece_before", ""), figures["ece"]]
    cells = [f"{figure:.4f}" if figure != "" else "" for figure in shown]
    more = [figures.get("epochs", ""), figures.get("seconds", "")]
    print(f"| {folder.name} | {how} | " + " | ".join([*cells, *map(str, more)]) + " |", flush=True)


def all_rows(rows: LabelledRows, classes: tuple[str, ...]) -> LabelledSequences:
    """The rows of all sides, with labels in the order of `classes`."""
    sides = [rows.side(side) for side in SIDES]
    lengths = np.concatenate([np.diff(offsets) for _, offsets, _ in sides])
    order = np.array([classes.index(name) for name in rows.classes])
    return LabelledSequences(
        np.concatenate([values for values, _, _ in sides]),
        np.concatenate(([0], np.cumsum(lengths))),
        order[np.concatenate([labels for _, _, labels in sides])],
    )


def measure_baseline(rows: LabelledRows, test: LabelledSequences, C: float) -> dict[str, Any]:
    train_rows = all_rows(rows, rows.classes)
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), lowercase=False)
    features = vectorizer.fit_transform(texts(train_rows))
    model = LogisticRegression(C=C, max_iter=1000).fit(features, train_rows.labels)
    probabilities = np.zeros((len(test), len(rows.classes)))
    probabilities[:, model.classes_] = model.predict_proba(vectorizer.transform(texts(test)))
    return evaluate(probabilities, test.labels, rows.classes)


def texts(rows: LabelledSequences) -> list[str]:
    """A character for each byte."""
    text = rows.values.astype(np.uint8).tobytes().decode("latin-1")
    return [text[start:end] for start, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]


def measure_ours(
    rows: LabelledRows, test: LabelledSequences, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    chosen = preset(arguments.preset)
    validation = LabelledSequences(*rows.side(VALIDATION))
    settings = chosen.settings(seed=seed, threads=arguments.threads)
    result = train(chosen.config(rows.classes), settings, LabelledSequences(*rows.side(TRAIN)), validation)
    before = evaluate(probabilities_of(result, test, 1.0, arguments.threads), test.labels, rows.classes)
    after = evaluate(probabilities_of(result, test, result.temperature, arguments.threads), test.labels, rows.classes)
    epochs = f"{result.best_epoch} of {len(result.epochs)}"
    return {**after, "ece_before": before["ece"], "epochs": epochs, "seconds": f"{result.seconds:.0f}"}


def probabilities_of(
    result: TrainingResult, test: LabelledSequences, temperature: float, threads: int
) -> npt.NDArray[np.float32]:
    result.network.config = replace(result.network.config, temperature=temperature)
    return open_engine(result.network, threads=threads).score(test.values, test.offsets).probabilities


if __name__ == "__main__":
    main()
