"""The champion against a logistic regression that sees only how often each byte occurs, on the same test rows.

    python tests/benchmarks/byte_histogram.py SOURCE --registry DIR

prints a Markdown table. What the champion gains is what the order of bytes tells. Needs the extra `test`.
"""

import argparse
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from attnlstm.checkpoint import from_files
from attnlstm.engines import open_engine
from attnlstm.evaluation.metrics import evaluate
from storage.labelled.source import LabelledRows, read_labelled
from storage.labelled.split import TEST, TRAIN, VALIDATION
from storage.registry.checkpoints import CHAMPION, Registry

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Values of C to choose from: the baseline gets the same validation rows to choose by as the network does."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="labelled Parquet, as for `attnlstm retrain`")
    parser.add_argument("--registry", required=True, help="folder of the champion that was trained on it")
    arguments = parser.parse_args()

    rows = read_labelled(arguments.source)
    results = {
        "byte histogram, logistic regression": measure_baseline(rows),
        "attention-LSTM, champion": measure_champion(rows, Registry.open(arguments.registry)),
    }
    print(f"| {len(rows.side(TEST)[2]):,} test rows, {len(rows.classes)} classes | accuracy | macro-F1 |")
    print("|---|---|---|")
    for name, metrics in results.items():
        print(f"| {name} | {metrics['accuracy']:.4f} | {metrics['macro_f1']:.4f} |")


def measure_baseline(rows: LabelledRows) -> dict[str, Any]:
    """Metrics on the test side of a regression fitted on the train side, C chosen on the validation side."""
    train, train_labels = byte_histograms(*rows.side(TRAIN)[:2]), rows.side(TRAIN)[2]
    validation, validation_labels = byte_histograms(*rows.side(VALIDATION)[:2]), rows.side(VALIDATION)[2]
    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(train, train_labels)
        for C in PENALTIES
    ]
    best = max(models, key=lambda model: model.score(validation, validation_labels))
    values, offsets, labels = rows.side(TEST)
    probabilities = np.zeros((len(labels), len(rows.classes)))
    probabilities[:, best.classes_] = best.predict_proba(byte_histograms(values, offsets))
    return evaluate(probabilities, labels, rows.classes)


def measure_champion(rows: LabelledRows, registry: Registry) -> dict[str, Any]:
    """Metrics on the test side of the registry's champion."""
    stored = registry.load(CHAMPION)
    network = from_files(stored.files, where=str(stored.location))
    if network.config.classes != rows.classes:
        raise SystemExit(f"the champion knows the classes {network.config.classes}, the source has {rows.classes}")
    values, offsets, labels = rows.side(TEST)
    return evaluate(open_engine(network).score(values, offsets).probabilities, labels, rows.classes)


def byte_histograms(values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """float64 (N, 256): the share of each byte among a row's tokens."""
    lengths = np.diff(offsets)
    cells = np.repeat(np.arange(len(lengths)), lengths) * 256 + values
    counts = np.bincount(cells, minlength=len(lengths) * 256).reshape(len(lengths), 256)
    return counts / lengths[:, None]


if __name__ == "__main__":
    main()
