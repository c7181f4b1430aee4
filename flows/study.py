"""The command `study`: what attention is worth, measured on labelled data, with every training kept as it ends.

    OUT/trainings/<set>/<pooling>-<seed>.json    one training each, so that a study that was killed goes on
    OUT/study.json  study.md  study.svg          figures, tables and verdict, convergence curves

Reads storage, trains, writes. Knows nothing about Prefect or about what the figures mean.
"""

import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.cli.printing import counted, out, print_json
from flows.cli.session import DONE
from storage.labelled.source import LabelledSource
from storage.labelled.split import TEST, TRAIN, VALIDATION
from storage.locations import Location, without_credentials

if TYPE_CHECKING:
    from attnlstm.study import Outcome, StudyRows
    from attnlstm.variants import Variant

_NEEDED = ("matplotlib", "scipy")
_LEAST_SEEDS = 2  # one has no spread

Seeds = Annotated[int, Field(ge=_LEAST_SEEDS)]
AtLeastOne = Annotated[int, Field(ge=1)]


def study(
    source: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    out_folder: Annotated[str, Parameter(name="--out")],
    seeds: Seeds = 5,
    epochs: AtLeastOne | None = None,
    rows: AtLeastOne | None = None,
    threads: AtLeastOne | None = None,
    tokens_column: str = "tokens",
    label_column: str = "label",
    group_column: str = "group",
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Compare poolings of the LSTM's states, with attention and without, on labelled Parquet; equal budgets for all.

    Run it again to go on where it was stopped, or with more seeds to add them.

    Args:
        source: Labelled Parquet files, folders, globs or URIs. Each is a set of its own, named by its last part.
        out_folder: Folder or URI for tables, picture and the record of each training.
        seeds: Trainings of each pooling on each set.
        epochs: Passes over the training rows; as many as suit the number of rows, if it is not given.
        rows: Most rows of a set, of all sides of the split together; all of them if it is not given.
        threads: Threads to train with; one a core if it is not given. It does not change the figures.
        tokens_column: Column with the tokens.
        label_column: Column with the class.
        group_column: Column whose equal values stay on one side of the split.
        as_json: Print the figures as JSON, for scripts.
    """
    _require_libraries()
    names = _names(source)
    place = Location.parse(out_folder)
    sets = {
        name: _read(LabelledSource(each, tokens_column, label_column, group_column), rows)
        for name, each in zip(names, source, strict=True)
    }
    outcomes = _train_all(sets, place, range(seeds), epochs, threads)
    record = _write(sets, outcomes, place)
    if as_json:
        print_json(record)
        return DONE
    out.print((place / "study.md").read_text(), markup=False)
    out.print(f"The study: [bold]{escape(str(place / 'study.md'))}[/bold]")
    return DONE


def _require_libraries() -> None:
    """Said now, rather than after an hour of training. Raises ValueError."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"a study needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed here: "
            "pip install 'attnlstm[study]'"
        )


def _names(sources: Sequence[str]) -> list[str]:
    """The last part of each, as far as it can name a folder. Raises ValueError if two have the same."""
    parts = [without_credentials(each).rstrip("/").rpartition("/")[2].removesuffix(".parquet") for each in sources]
    names = [re.sub(r"[^\w.-]+", "-", part).strip(".") or "set" for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two sources are named {name!r}; their last parts tell sets apart, so they must differ")
    return names


def _read(source: LabelledSource, num_rows: int | None) -> "StudyRows":
    from attnlstm.study import StudyRows
    from attnlstm.training.loop import Labelled

    found = source.read()
    rows = StudyRows(found.classes, *(Labelled(*found.side(side)) for side in (TRAIN, VALIDATION, TEST)))
    return rows.thinned(num_rows) if num_rows else rows


def _train_all(
    sets: "dict[str, StudyRows]", place: Location, seeds: Sequence[int], epochs: int | None, threads: int | None
) -> "dict[str, list[Outcome]]":
    """Every pooling with every seed on every set, those that are there already excepted.

    Seeds come first: of a study that was killed, what there is says something of every pooling and every set.
    """
    from attnlstm.study import budget, train_variant, training_digest
    from attnlstm.variants import VARIANTS

    outcomes: dict[str, list[Outcome]] = {name: [] for name in sets}
    work = [(seed, name, variant) for seed in seeds for name in sets for variant in VARIANTS]
    for seed, name, variant in _shown(work):
        rows = sets[name]
        settings = budget(rows, seed=seed, epochs=epochs, threads=threads)
        digest = training_digest(variant, rows, settings)
        file = place / f"trainings/{name}/{variant}-{seed}.json"
        outcome = _kept(file, digest)
        if outcome is None:
            outcome = train_variant(variant, rows, settings)
            file.write_bytes(_json({"digest": digest, "outcome": asdict(outcome)}))
        outcomes[name].append(outcome)
    return outcomes


def _shown(work: "list[tuple[int, str, Variant]]") -> "Iterator[tuple[int, str, Variant]]":
    """The same, with a bar in a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()) as bars:
        bar = bars.add_task("trainings", total=len(work))
        for seed, name, variant in work:
            bars.update(bar, description=escape(f"{name}, {variant}, seed {seed}"))
            yield seed, name, variant
            bars.advance(bar)


def _kept(file: Location, digest: str) -> "Outcome | None":
    """The outcome of an earlier run, if it is of the same rows and settings."""
    from attnlstm.study import Outcome

    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_bytes())
        return Outcome(**record["outcome"]) if record["digest"] == digest else None
    except (ValueError, KeyError, TypeError):
        return None  # not a record of this version: as good as not there


def _write(sets: "dict[str, StudyRows]", outcomes: "dict[str, list[Outcome]]", place: Location) -> dict[str, Any]:
    """Figures, tables and picture. Returns what is in the JSON."""
    from flows.study_picture import draw_curves
    from flows.study_report import NAMES, markdown, verdict
    from flows.study_summary import summarise

    figures = [summarise(name, outcomes[name], rows.shares_loss()) for name, rows in sets.items()]
    descriptions = {name: _describe(rows, len(outcomes[name][0].train_loss)) for name, rows in sets.items()}
    record = {
        "verdict": verdict(figures),
        "sets": [asdict(each) for each in figures],
        "descriptions": descriptions,
        "trainings": {name: [asdict(outcome) for outcome in found] for name, found in outcomes.items()},
    }
    (place / "study.json").write_bytes(_json(record))
    with (place / "study.svg").replacing() as temporary:
        draw_curves(figures, outcomes, NAMES, temporary)
    (place / "study.md").write_bytes(markdown(figures, descriptions, "study.svg").encode())
    return record


def _describe(rows: "StudyRows", num_epochs: int) -> str:
    sides = ", ".join(f"{len(side):,}" for side in (rows.train, rows.validation, rows.test))
    mean_length = len(rows.train.values) / len(rows.train)
    return (
        f"{counted(len(rows), 'row')} ({sides} to train on, validate and test), {len(rows.classes)} classes, "
        f"{mean_length:.0f} tokens a row, {counted(num_epochs, 'epoch')}"
    )


def _json(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()
