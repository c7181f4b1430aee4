"""The study on a tiny set, its figures on outcomes made by hand, and the page of results against its record."""

import json
import math
import random
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import trainings
from attnlstm.training.schedule import usual_epochs
from attnlstm.training.settings import preset
from figures import WAY_TO_BEST, SetFigures, summarise
from poolings import POOLINGS, Pooling
from report import draw_curves, markdown, verdict
from run import study
from trainings import Outcome, budget, digest_of, read_set

RESULTS = Path(__file__).parents[1] / "results"
TINY = {"seeds": 2, "epochs": 2, "rows": 90}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of three classes whose rows are noise but for one telling letter."""
    noise = random.Random(11)
    labels = [noise.choice("xyz") for _ in range(131)]
    tokens = ["".join(noise.choices("abcdefg" + label, k=noise.randint(3, 20))).encode() for label in labels]
    path = tmp_path_factory.mktemp("sets") / "letters.parquet"
    pq.write_table(pa.table({"tokens": tokens, "label": labels}), path)
    return path


@pytest.fixture(scope="module")
def finished(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that the script made. Read only."""
    out = tmp_path_factory.mktemp("study") / "out"
    options = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    script = Path(__file__).with_name("run.py")
    subprocess.run([sys.executable, str(script), str(labelled), "--out", str(out), *options], check=True)
    return out


def record(out: Path) -> dict[str, Any]:
    """What the study found, without what the clock said."""
    found: dict[str, Any] = json.loads((out / "study.json").read_text())
    for outcomes in found["trainings"].values():
        for outcome in outcomes:
            del outcome["seconds"]
    return found


def test_the_script_writes_tables_picture_and_every_training(finished: Path) -> None:
    assert len(list((finished / "trainings" / "reference" / "letters").iterdir())) == 2 * len(POOLINGS)
    text = (finished / "study.md").read_text()
    assert all(sentence in text for sentence in record(finished)["verdict"].values())
    assert "- letters: 90 rows (" in text
    assert (finished / "study.svg").read_text().startswith("<?xml")
    for outcome in record(finished)["trainings"]["letters"]:
        assert len(outcome["train_loss"]) == len(outcome["validation_loss"]) == len(outcome["validation_accuracy"]) == 2
        assert 0 < outcome["log_loss"] < 3


def test_a_study_trains_only_what_is_not_there_or_damaged_or_of_other_settings(
    finished: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    train_once = trainings.train_once

    def noted(pooling: Pooling, chosen: Any, rows: Any, settings: Any) -> Outcome:
        names.append(f"{pooling}-{settings.seed}")
        return train_once(pooling, chosen, rows, settings)

    monkeypatch.setattr(trainings, "train_once", noted)
    out = shutil.copytree(finished, tmp_path / "out")
    file = out / "trainings" / "reference" / "letters" / "mean-1.json"
    file.write_bytes(file.read_bytes()[:100])
    study([str(labelled)], out, **TINY)
    assert names == ["mean-1"]
    assert record(out) == record(finished)
    names.clear()
    study([str(labelled)], out, **{**TINY, "seeds": 3})
    assert names == [f"{pooling}-2" for pooling in POOLINGS]
    names.clear()
    study([str(labelled)], out, **{**TINY, "rows": 80})
    assert len(names) == 2 * len(POOLINGS)


@pytest.mark.parametrize(
    ("names", "seeds", "message"), [(("set", "set.parquet"), 2, "must differ: set, set"), (("set",), 1, "at least 2")]
)
def test_what_makes_no_study_is_refused_before_anything_is_read(
    names: tuple[str, ...], seeds: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        study([str(tmp_path / name) for name in names], tmp_path / "out", seeds=seeds)


def test_sides_keep_their_shares_and_the_budget_is_all_epochs_on_whole_rows(labelled: Path) -> None:
    whole, some = read_set(str(labelled), None), read_set(str(labelled), 60)
    for all_rows, fewer in zip(whole.sides, some.sides, strict=True):
        assert len(fewer) == round(len(all_rows) * 60 / 131)
    assert digest_of(some.sides[0]) == digest_of(read_set(str(labelled), 60).sides[0])
    settings = budget(preset("reference"), whole, 5, 9)
    assert (settings.seed, settings.epochs, settings.patience, settings.crop_tokens) == (5, 9, 9, None)
    assert budget(preset("reference"), whole, 5, None).epochs == usual_epochs(math.ceil(len(whole.sides[0]) / 64))
    counts = [list(whole.sides[0].labels).count(label) for label in range(3)]
    losses = [-math.log(counts[label] / sum(counts)) for label in whole.sides[1].labels]
    assert whole.shares_loss() == pytest.approx(statistics.fmean(losses))


ACCURACY: dict[Pooling, list[float]] = {
    "last_state": [0.60, 0.61, 0.62],
    "mean": [0.70, 0.66, 0.69],
    "additive": [0.70, 0.72, 0.71],
    "multihead": [0.62, 0.62, 0.65],
    "multihead_published": [0.49, 0.50, 0.48],
}
LOSSES: dict[Pooling, list[float]] = {
    "last_state": [1.0, 0.9, 0.8, 0.8, 0.7, 0.7],
    "mean": [0.9, 0.5, 0.35, 0.3, 0.3, 0.3],
    "additive": [0.8, 0.35, 0.3, 0.2, 0.1, 0.0],
    "multihead": [0.9, 0.8, 0.35, 0.3, 0.2, 0.1],
    "multihead_published": [1.0, 1.0, 0.9, 0.9, 0.9, 0.9],
}


def outcomes(accuracy: dict[Pooling, list[float]] = ACCURACY) -> list[Outcome]:
    """In no order; of seed 2 multihead is an epoch later."""
    made = []
    for seed in range(3):
        for pooling in POOLINGS:
            losses = LOSSES[pooling]
            if seed == 2 and pooling == "multihead":
                losses = [*losses[:1], *losses[:-1]]
            made.append(Outcome(pooling, seed, 12_345, accuracy[pooling][seed], 0.5, 0.5, 6, (), losses, (), 1.0))
    random.Random(7).shuffle(made)
    return made


@pytest.fixture
def figures() -> SetFigures:
    return summarise("hand-made", outcomes(), shares_loss=2.0)


def test_the_loss_to_reach_is_on_the_way_from_the_shares_to_the_best_and_unreached_counts_as_one_more(
    figures: SetFigures,
) -> None:
    assert figures.loss == pytest.approx(0.4)
    epochs = [(each.variant, each.epochs.mean, each.num_unreached) for each in figures.variants]
    assert epochs == [
        ("last_state", 7, 3),
        ("mean", 3, 0),
        ("additive", 2, 0),
        ("multihead", pytest.approx(10 / 3), 0),
        ("multihead_published", 7, 3),
    ]


def test_differences_are_paired_by_seed_and_have_students_interval(figures: SetFigures) -> None:
    against_mean = figures.lifts[1]
    differences = [0.0, 0.06, 0.02]
    # 4.3027: the 97.5% point of Student's t with two degrees of freedom, from a printed table
    half = 4.3027 * statistics.stdev(differences) / math.sqrt(3)
    mean = statistics.fmean(differences)
    assert (against_mean.variant, against_mean.against) == ("additive", "mean")
    found = (against_mean.mean, against_mean.low, against_mean.high)
    assert found == pytest.approx((mean, mean - half, mean + half), abs=1e-5)


def test_findings_follow_from_the_mean_and_its_interval(figures: SetFigures) -> None:
    assert [each.finding for each in figures.lifts] == ["a lot", *["not beyond chance"] * 3]
    ours, published = figures.slowdowns
    assert (ours.variant, ours.finding) == ("multihead", "a little")
    assert ours.mean == pytest.approx((1.5 * 1.5 * 2) ** (1 / 3))
    assert (published.finding, published.mean) == ("a lot", pytest.approx(3.5))
    worse = {**ACCURACY, "multihead": [0.50, 0.47, 0.49]}
    findings = [each.finding for each in summarise("worse", outcomes(worse), 2.0).lifts]
    assert findings[2:] == ["the other way round", "the other way round"]


@pytest.mark.parametrize(("num_others_late", "finding"), [(0, "a lot"), (1, "a lot"), (2, "not beyond chance")])
def test_what_never_gets_there_is_far_slower_only_than_what_mostly_does(num_others_late: int, finding: str) -> None:
    # The others need all six epochs, which is no half of the seven that stand for never.
    late = {seed: [1.0] * 6 if seed < num_others_late else [*[1.0] * 5, 0.0] for seed in range(3)}
    found = [
        replace(outcome, validation_loss=late[outcome.seed]) if outcome.variant == "additive" else outcome
        for outcome in outcomes()
    ]
    assert summarise("late", found, shares_loss=2.0).slowdowns[1].finding == finding


def test_the_verdict_says_yes_only_if_all_agree() -> None:
    far = {**ACCURACY, "additive": [0.9, 0.91, 0.92], "multihead": [0.8, 0.81, 0.82]}
    lifts, slowdowns = verdict([summarise("far", outcomes(far), 2.0)]).values()
    assert lifts.startswith("True here. Of 4 comparisons of an attention with a pooling without: 4 a lot.")
    assert slowdowns.startswith("As published, true here; with attention over time, as it was meant, not true here.")


@pytest.mark.parametrize(("stem", "preset_name"), [("study", "reference"), ("study-small", "small")])
def test_the_page_of_results_follows_from_its_record(stem: str, preset_name: str, tmp_path: Path) -> None:
    kept = json.loads((RESULTS / f"{stem}.json").read_text())
    found = {name: [Outcome(**each) for each in outcomes] for name, outcomes in kept["trainings"].items()}
    sets = []
    for each in kept["sets"]:
        least = min(min(outcome.validation_loss) for outcome in found[each["name"]])
        shares_loss = (each["loss"] - WAY_TO_BEST * least) / (1 - WAY_TO_BEST)
        sets.append(summarise(each["name"], found[each["name"]], shares_loss))
    assert verdict(sets) == kept["verdict"]
    assert markdown(sets, kept["descriptions"], preset_name, f"{stem}.svg") == (RESULTS / f"{stem}.md").read_text()
    draw_curves(sets, found, tmp_path / "study.svg")
    picture = (tmp_path / "study.svg").read_text()
    for text in (*kept["descriptions"], "validation loss (nats)", "the loss to reach", "multihead as published"):
        assert f">{text}</text>" in picture
    assert "<image" not in picture
