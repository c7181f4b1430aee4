"""Measure what attention is worth on labelled Parquet: five poolings of the same LSTM, with equal budgets.

    python tests/benchmarks/study/run.py SET... --out OUT [--preset reference] [--seeds 5] [--epochs 12] [--rows 2000]

    OUT/trainings/<preset>/<set>/<pooling>-<seed>.json    each training as it ends: a kill costs one
    OUT/study.json  study.md  study.svg                   figures, tables and verdict, convergence curves
    OUT/study-<preset>.json ...                           the same of another preset than `reference`

Each SET is a file or folder with columns `tokens`, `label` and, where rows belong together, `group`; its last part is
its name. More seeds on a later run are added to those that are there.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from attnlstm.training.settings import PRESETS, PresetName, preset
from figures import summarise
from poolings import POOLINGS
from report import draw_curves, markdown, verdict
from trainings import LabelledSet, Outcome, budget, read_set, trained


def study(
    sources: list[str],
    out: Path,
    *,
    preset_name: PresetName = "reference",
    seeds: int = 5,
    epochs: int | None = None,
    rows: int | None = None,
) -> None:
    """Train what is not there yet and write the results. Raises ValueError on two sources of one name, or on one seed.

    preset_name: whose sizes and settings. seeds: trainings of each pooling on each set. epochs: None for as many as
    suit the rows. rows: most rows of a set, of all sides of the split together; None for all.
    """
    names = [Path(source).name.removesuffix(".parquet") for source in sources]
    if seeds < 2:
        raise ValueError(f"seeds must be at least 2, since one training has no spread, not {seeds}")
    if len(set(names)) < len(names):
        raise ValueError(f"the last parts of sources tell sets apart, so they must differ: {', '.join(names)}")
    chosen = preset(preset_name)
    stem = "study" if preset_name == "reference" else f"study-{preset_name}"
    sets = {name: read_set(source, rows) for name, source in zip(names, sources, strict=True)}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in sets}
    # Seeds come first, so that what a stopped study leaves says something of every pooling and every set.
    work = [(seed, name, pooling) for seed in range(seeds) for name in sets for pooling in POOLINGS]
    for number, (seed, name, pooling) in enumerate(work, 1):
        print(f"training {number} of {len(work)}: {name}, {pooling}, seed {seed}", flush=True)
        file = out / "trainings" / preset_name / name / f"{pooling}-{seed}.json"
        settings = budget(chosen, sets[name], seed, epochs)
        outcomes[name].append(trained(pooling, chosen, sets[name], settings, file))

    figures = [summarise(name, outcomes[name], found.shares_loss()) for name, found in sets.items()]
    descriptions = {
        name: _describe(found, figures[place].num_epochs) for place, (name, found) in enumerate(sets.items())
    }
    record = {
        "verdict": verdict(figures),
        "sets": [asdict(each) for each in figures],
        "descriptions": descriptions,
        "trainings": {name: [asdict(outcome) for outcome in found] for name, found in outcomes.items()},
    }
    (out / f"{stem}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    draw_curves(figures, outcomes, out / f"{stem}.svg")
    (out / f"{stem}.md").write_text(markdown(figures, descriptions, preset_name, f"{stem}.svg"))
    print(f"The study: {out / f'{stem}.md'}")


def _describe(rows: LabelledSet, num_epochs: int) -> str:
    counts = [len(side) for side in rows.sides]
    return (
        f"{sum(counts):,} rows ({', '.join(f'{count:,}' for count in counts)} to train on, validate and test), "
        f"{len(rows.classes)} classes, {len(rows.sides[0].values) / counts[0]:.0f} tokens a row, {num_epochs} epochs"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SET", help="labelled Parquet, a file or folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for results and the record of each training")
    parser.add_argument("--preset", choices=list(PRESETS), default="reference", help="sizes and settings (%(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each pooling on each set, at least 2")
    parser.add_argument("--epochs", type=int, help="passes over the train rows; by default as many as suit the rows")
    parser.add_argument("--rows", type=int, help="most rows of a set; by default all")
    options = parser.parse_args()
    study(
        options.sources,
        options.out,
        preset_name=options.preset,
        seeds=options.seeds,
        epochs=options.epochs,
        rows=options.rows,
    )
