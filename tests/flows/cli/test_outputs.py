"""The commands that look at an output: plan, verify and prune, as a user meets them."""

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import rewrite, set_value
from flows.cli import DONE, FAILED
from flows.operations.score import LoadedCheckpoint, ScoringJob, score_bundle
from storage.locations import Location
from storage.locks import only_run
from storage.output.layout import AttentionSaving, Output, OutputSettings
from storage.output.manifests import RunManifest, ShardRecord, write_manifest
from storage.output.plan import plan_output
from storage.registry.checkpoints import Registry

Run = Callable[..., Any]
PART = "date=2026-11-02/part-0.parquet"


def _score(dataset: Path, output: Path, registry: Path, saving: str = "full") -> None:
    """What the classify flow does with a dataset, without Prefect."""
    stored = Registry.open(str(registry)).load("champion")
    place = Output(Location.parse(output), OutputSettings(attention=AttentionSaving.parse(saving)))
    plan = plan_output(str(dataset), place)
    place.prepare(str(plan.source.root))
    job = ScoringJob.of(stored, plan.source.root, place, device="cpu", engine="torch")
    score_bundle(job, plan.pending(stored.id, "missing"), LoadedCheckpoint(job, stored))


@pytest.fixture
def output(dataset_copy: Path, untrained_registry: Path, tmp_path: Path) -> Path:
    """The copied dataset, scored by the champion, to be changed at will."""
    _score(dataset_copy, tmp_path / "output", untrained_registry)
    return tmp_path / "output"


@pytest.fixture
def look(attnlstm: Run, dataset_copy: Path, output: Path, untrained_registry: Path) -> Run:
    """Runs plan, verify or prune on the copied dataset and its output."""

    def run(command: str, *words: str) -> Any:
        places = () if command == "prune" else ("--registry", str(untrained_registry))
        return attnlstm(command, str(dataset_copy), str(output), *places, *words)

    return run


def _nudged(table: pa.Table, rows: Collection[int]) -> pa.Table:
    """With a thousandth more for the largest probability of these rows, taken from the others; scores follow."""
    probabilities = table["probabilities"].to_pylist()
    for row in rows:
        if probabilities[row] is not None:
            largest = max(probabilities[row])
            probabilities[row] = [0.999 * each + 0.001 * (each == largest) for each in probabilities[row]]
    for name, values in (
        ("probabilities", probabilities),
        ("score", [max(each) if each else None for each in probabilities]),
    ):
        column = pa.array(values, table.schema.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


class TestPlan:
    def test_new_output_misses_everything_and_stays_unmade(
        self, attnlstm: Run, dataset: Path, untrained_registry: Path, tmp_path: Path
    ) -> None:
        ended = attnlstm("plan", str(dataset), str(tmp_path / "new"), "--registry", str(untrained_registry))

        assert (ended.code, ended.err) == (DONE, "")
        assert "4 missing" in ended.out
        assert "420 rows in 4 shards" in ended.out
        assert "unknown: no run has scored anything here yet" in ended.out
        assert not (tmp_path / "new").exists()

    def test_reasons_are_counted(self, look: Run, dataset_copy: Path) -> None:
        shutil.copytree(dataset_copy / "date=2026-11-01", dataset_copy / "date=2026-11-03")  # missing
        rewrite(dataset_copy / "date=2026-11-02/part-0.parquet", lambda table: table[:50])  # changed
        shutil.rmtree(dataset_copy / "date=2026-11-04")  # orphaned
        (dataset_copy / "broken.parquet").write_text("not Parquet")

        ended, text = look("plan", "--json"), look("plan").out

        told = json.loads(ended.out)
        assert ended.code == DONE
        assert told["shards"] == {
            "missing": 1,
            "input changed": 1,
            "with errors": 0,
            "stale": 0,
            "up to date": 2,
            "orphaned": 2,
        }
        assert {each["name"]: (each["reason"], each["rows"]) for each in told["pending"]} == {
            "date=2026-11-02/part-0.parquet": ("input changed", 50),
            "date=2026-11-03/part-0.parquet": ("missing", 105),
        }
        assert told["to_score"]["rows"] == 155
        assert told["to_score"]["bytes"] == sum(
            (dataset_copy / date / "part-0.parquet").stat().st_size for date in ("date=2026-11-02", "date=2026-11-03")
        )
        assert [orphan["path"] for orphan in told["orphans"]] == [
            f"{kind}/date=2026-11-04/part-0.parquet" for kind in ("attention", "predictions")
        ]
        (unreadable,) = told["unreadable"]
        assert unreadable["file"] == "broken.parquet"
        assert "not a whole Parquet file" in unreadable["reason"]
        assert "1 missing, 1 input changed, 2 up to date" in text
        assert "2 files, which attnlstm prune shows and removes" in text
        assert "1 file that can't be read; classify does the rest, and ends with exit code 1" in text
        assert "unreadable  broken.parquet: not a whole Parquet file" in text

    def test_input_of_which_no_file_can_be_read_fails_as_classify_would(
        self, attnlstm: Run, untrained_registry: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "broken.parquet").write_text("not Parquet")

        ended = attnlstm(
            "plan", str(tmp_path / "broken.parquet"), str(tmp_path / "new"), "--registry", str(untrained_registry)
        )

        assert (ended.code, ended.err) == (FAILED, "")
        assert "no file can be read, so classify would do nothing, and end with exit code 1" in ended.out
        assert "unreadable  broken.parquet: not a whole Parquet file" in ended.out

    def test_stale_shards_are_told_and_scored_only_if_asked(self, look: Run, untrained: dict[str, Path]) -> None:
        other = ("--checkpoint", str(untrained["multihead"]))

        left = look("plan", *other)
        told = json.loads(look("plan", *other, "--mode", "stale", "--json").out)

        assert "; not what is stale, which --mode stale adds" in left.out
        assert told["shards"]["stale"] == 4
        assert [each["reason"] for each in told["pending"]] == ["stale"] * 4

    def test_expected_time_is_by_the_last_run_that_scored_anything(
        self, look: Run, dataset_copy: Path, output: Path, plain_manifest: RunManifest
    ) -> None:
        # 105 rows of 20 tokens each, 700 tokens a second: 3 s. The newer one scored nothing.
        for run_id, shards in (("one", (ShardRecord("a", "missing", 105, 2100, 0, {}, {}, 3.0),)), ("two", ())):
            write_manifest(Location.parse(output), replace(plain_manifest, run_id=run_id, seconds=3.0, shards=shards))
        (output / "runs" / "three.json").write_text("cut sh")
        shutil.copytree(dataset_copy / "date=2026-11-01", dataset_copy / "date=2026-11-03")

        told = json.loads(look("plan", "--json").out)

        assert told["expected"] == {"seconds": 3.0, "tokens_per_second": 700, "run_id": "one", "engine": "torch on cpu"}
        assert "about 3 s" in look("plan").out


class TestVerify:
    def test_output_that_the_flow_wrote_is_right(self, attnlstm: Run, dataset: Path, scored: Any, trained: Any) -> None:
        where = (str(dataset), str(scored.output), "--registry", str(trained.registry))

        ended = attnlstm("verify", *where, "--deep", "50", "--json")

        told = json.loads(ended.out)
        assert (ended.code, told["rows"], told["files"], told["problems"]) == (DONE, 420, 4, [])
        assert told["scored_again"]["rows"] > 40
        assert told["scored_again"]["difference"] <= 1e-5
        assert "4 up to date" in attnlstm("plan", *where).out

    def test_a_slice_is_verified_alone_and_what_is_wrong_is_named(
        self, attnlstm: Run, dataset_copy: Path, output: Path, untrained_registry: Path
    ) -> None:
        rewrite(output / "predictions" / PART, set_value("id", 7, lambda was: f"{was}!"))

        slices = [
            attnlstm("verify", str(dataset_copy / date), str(output), "--registry", str(untrained_registry))
            for date in ("date=2026-11-01", "date=2026-11-02")
        ]

        assert [(ended.code, ended.out) for ended in slices] == [
            (DONE, "105 rows in 1 file are right.\n"),
            (FAILED, f"wrong  predictions/{PART}, row 7: id is 'row-112!', expected 'row-112'\n"),
        ]

    @pytest.mark.parametrize("saving", ["full", "top:3", "none"])
    def test_deep_finds_scores_that_the_checkpoint_did_not_give(
        self, attnlstm: Run, dataset_copy: Path, untrained_registry: Path, tmp_path: Path, saving: str
    ) -> None:
        place = tmp_path / "output"
        _score(dataset_copy, place, untrained_registry, saving)
        where = (str(dataset_copy), str(place), "--registry", str(untrained_registry), "--deep", "420")
        right = attnlstm("verify", *where)
        # Still probabilities with the same winner, and weights that sum to 1: only scoring again can tell.
        rewrite(place / "predictions" / PART, lambda table: _nudged(table, [7]))
        if saving == "full":
            rewrite(place / "attention" / PART, set_value("weights", 9, lambda was: was[::-1]))

        shallow, deep = attnlstm("verify", *where[:-2]), attnlstm("verify", *where)

        assert (right.code, shallow.code, deep.code) == (DONE, DONE, FAILED)
        assert right.out.splitlines()[1].startswith("412 rows scored again, ")
        assert f"wrong  predictions/{PART}, row 7: differs by " in deep.out
        assert (f"wrong  attention/{PART}, row 9: differs by " in deep.out) == (saving == "full")

    def test_deep_takes_the_same_rows_each_time(self, look: Run, output: Path) -> None:
        rewrite(output / "predictions" / PART, lambda table: _nudged(table, range(len(table))))

        first, second = (json.loads(look("verify", "--deep", "40", "--json").out) for _ in range(2))

        assert first == second
        assert 0 < len(first["problems"]) < 40

    def test_deep_needs_the_checkpoint_that_scored_and_all_else_does_not(
        self, attnlstm: Run, dataset_copy: Path, output: Path, untrained: dict[str, Path], tmp_path: Path
    ) -> None:
        where = ("verify", str(dataset_copy), str(output), "--registry", str(tmp_path / "elsewhere"))

        shallow = attnlstm(*where)
        without = attnlstm(*where, "--deep", "9")
        other = attnlstm(*where, "--deep", "9", "--checkpoint", str(untrained["multihead"]))
        by_folder = attnlstm(*where, "--deep", "9", "--checkpoint", str(untrained["additive"]))

        assert (shallow.code, shallow.out) == (DONE, "420 rows in 4 files are right.\n")
        assert without.code == other.code == FAILED
        assert "was scored by checkpoint" in without.err
        assert "name its registry with --registry, or its folder with --checkpoint" in without.err
        assert by_folder.code == DONE


class TestPrune:
    @pytest.fixture
    def orphaned(self, dataset_copy: Path, output: Path) -> list[str]:
        """An input is gone and a run was killed: the paths that are to be removed. A file of unknown origin stays."""
        (dataset_copy / PART).unlink()
        shutil.copy(dataset_copy / "date=2026-11-01/part-0.parquet", output / "predictions/mine.parquet")
        left = "predictions/date=2026-11-01/.part-0.parquet.0123abcd.tmp"
        (output / left).write_bytes(b"unfinished")
        return sorted([f"attention/{PART}", f"predictions/{PART}", left])

    def test_orphans_and_leftovers_are_named_by_a_dry_run_and_then_removed(
        self, look: Run, output: Path, orphaned: list[str]
    ) -> None:
        ended = look("prune", "--dry-run")

        assert ended.code == DONE
        assert f"would remove  predictions/{PART} (input is gone)" in ended.out
        assert "(left by a killed run)" in ended.out
        assert "left  predictions/mine.parquet (unknown origin)" in ended.out
        assert "Would remove 3 files of " in ended.out
        assert all((output / path).exists() for path in orphaned)

        told = json.loads(look("prune", "--json").out)

        assert sorted(each["path"] for each in told["removed"]) == orphaned
        assert (told["dry_run"], [each["path"] for each in told["left"]]) == (False, ["predictions/mine.parquet"])
        assert not any((output / path).exists() for path in orphaned)
        (output / "predictions/mine.parquet").unlink()
        assert look("prune").out == "Nothing to remove.\n"
        assert look("verify").out == "315 rows in 3 files are right.\n"

    def test_while_a_run_holds_the_output_nothing_is_removed(
        self, look: Run, output: Path, orphaned: list[str]
    ) -> None:
        with only_run(Location.parse(output), "steady heron"):
            ended = look("prune")

        assert ended.code == FAILED
        assert "Another run is writing to" in ended.err
        assert "steady heron" in ended.err
        assert all((output / path).exists() for path in orphaned)


def test_plan_tells_what_is_passed_over_and_what_might_be_meant(
    dataset_copy: Path, untrained_registry: Path, tmp_path: Path, attnlstm: Run
) -> None:
    (dataset_copy / "notes.txt").write_text("x")
    (dataset_copy / "latest").symlink_to("date=2026-11-01")
    (dataset_copy / "gone.parquet").symlink_to("nowhere")
    pq.write_table(pa.table({"ID": [1], "tokens": [b"a"]}), dataset_copy / "other.parquet")
    run = attnlstm("plan", str(dataset_copy), str(tmp_path / "new"), "--registry", str(untrained_registry))
    for line in (
        "unreadable gone.parquet: a link to nowhere, which does not exist or can't be reached",
        "passed over latest: a link to date=2026-11-01, which is read without it",
        "passed over notes.txt: its name does not end in .parquet, .parq, .pq",
        "note 1 file has a column 'ID' and none called 'id', so ids are row numbers; --id-column ID takes it",
    ):
        assert line in " ".join(run.out.split())


def test_contract_writes_what_other_tools_take_beside_the_output_or_where_it_is_told(
    attnlstm: Run, output: Path, tmp_path: Path
) -> None:
    names = ["contract.odcs.yaml", "sources.yml", "views.sql"]
    record = json.loads(attnlstm("contract", str(output), "--json").out)
    assert record == {"contract": str(output / "contract"), "files": names}
    attnlstm("contract", str(output), "--out", str(tmp_path / "elsewhere"))
    for name in names:
        assert (output / "contract" / name).read_bytes() == (tmp_path / "elsewhere" / name).read_bytes()
    assert f"'{output}/predictions/**/*.parquet'" in (output / "contract/views.sql").read_text()
