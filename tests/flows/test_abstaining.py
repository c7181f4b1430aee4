"""Runs that withhold predictions with low scores: what they write, count and say, apart from errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from attnlstm.evaluation.abstention import LADDER
from flows.classify import classify
from flows.orchestration.facts import run_facts, run_summary
from flows.pages.page import render_page
from flows.pages.report import report_output
from storage.errors import RegistryError
from storage.output.frames import open_predictions
from storage.output.plan import existing_output, plan_output
from storage.output.verification import verify_output
from storage.registry.checkpoints import Registry


@pytest.mark.parametrize("wanted", ["0.9", "precision=0.9"])
def test_rows_with_low_scores_are_counted_apart_from_errors(
    wanted: str,
    scored: Any,
    trained: Any,
    rescore: Callable[..., Any],
    attnlstm: Callable[..., Any],
    tmp_path: Path,
) -> None:
    run = rescore(tmp_path / "output", abstain_below=wanted)

    assert run.state.is_completed(), run.state.message
    before, after = (open_predictions(str(each.output)).sort("id").collect() for each in (scored, run))
    unchanged = [name for name in after.columns if name != "prediction"]
    assert after.select(unchanged).equals(before.select(unchanged))
    given = after.filter(after["prediction"].is_not_null())
    num_abstained = before["prediction"].count() - len(given)
    assert 0 < num_abstained < len(after) / 2
    manifest = run.manifest
    assert manifest.totals["abstained"] == num_abstained == run_summary(manifest)["abstained"]
    assert manifest.totals["errors"] == scored.manifest.totals["errors"]
    assert sum(manifest.totals["predictions"].values()) == len(given)
    right = (given["prediction"] == given["label"]).mean()
    assert manifest.evaluation["accuracy"] == pytest.approx(right)
    assert right > scored.manifest.evaluation["accuracy"]
    assert run_facts(manifest)["abstained"] == (
        f"{num_abstained:,} rows have a score too low for a prediction ({wanted})"
    )
    assert f"8 with errors, {num_abstained} without a prediction for their score;" in run.state.message
    output = existing_output(str(run.output))
    assert verify_output(plan_output(manifest.source, output)).problems == ()
    report = report_output(str(run.output), str(trained.registry), 20)
    assert report.figures.num_abstained == num_abstained
    (counts,) = [check for check in report.checks if check.text.startswith("Counts add up")]
    sums = f"{len(given)} with a prediction, {num_abstained} whose score is too low for one, and 8 with an error"
    assert sums in counts.text
    withheld = after.filter(after["prediction"].is_null() & after["error"].is_null())["id"][0]
    where = (str(manifest.source), str(run.output), "--registry", str(trained.registry), "--id", withheld)
    assert f"; the output withholds it, since it was to abstain below {wanted}\n" in attnlstm("explain", *where).out
    page = render_page(report)
    assert f"<dd>{num_abstained + 8}<small>{(num_abstained + 8) / 420:.1%}: {num_abstained} for a low score, 8" in page
    # Shares of a class over partitions are, as its share is, of the rows that have a prediction.
    by_date = given.group_by("date").agg(share=(pl.col("prediction") == "digits").mean())["share"]
    assert f'<td class="n">{by_date.min():.1%} to {by_date.max():.1%}</td>' in page


def test_precision_is_asked_of_a_checkpoint_that_knows_its_scores(
    untrained_registry: Path, dataset: Path, tmp_path: Path, prefect_server: str
) -> None:
    with pytest.raises(RegistryError, match=r"can't abstain below precision=0\.9: it is not known at which scores"):
        classify(str(dataset), str(tmp_path / "out"), registry=str(untrained_registry), abstain_below="precision=0.9")
    assert not (tmp_path / "out").exists()


def test_card_says_what_is_left_and_right_at_each_threshold(trained: Any) -> None:
    abstention = Registry.open(str(trained.registry)).card(trained.version).abstention

    assert abstention is not None
    for found in (abstention.scores, abstention.precisions):
        assert [at.wanted for at in found] == list(LADDER)
        coverages = [at.coverage for at in found]
        assert coverages == sorted(coverages, reverse=True)
    assert set(abstention.by_class) == set(json.loads((trained.folder / "config.json").read_text())["classes"])
    at = abstention.scores[LADDER.index(0.9)]
    words = f"A score of 0.9 leaves {at.coverage:.1%} of the test rows a prediction, {at.accuracy:.1%} of them right"
    assert words in (trained.folder / "README.md").read_text()
