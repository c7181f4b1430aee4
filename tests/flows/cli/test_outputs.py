"""The commands that look at an output: plan, verify and prune, as a user meets them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli import DONE, FAILED, WRONG_USE
from flows.operations.score import ScoringJob, score_shard
from storage.input.shards import plan_shards
from storage.input.sources import find_source
from storage.locations import Location
from storage.locks import only_run
from storage.output.layout import AttentionSaving, Output, OutputSettings
from storage.output.manifests import RunManifest, ShardRecord, write_manifest
from storage.registry.checkpoints import Registry

Run = Callable[..., Any]
PART = "date=2026-11-02/part-0.parquet"


def _score(dataset: Path, output: Path, registry: Path, saving: str = "full") -> None:
    """What the classify flow does with a dataset, without Prefect."""
    stored = Registry.open(str(registry)).load("champion")
    found = find_source(str(dataset))
    place = Output(Location.parse(output), OutputSettings(attention=AttentionSaving.parse(saving)))
    place.prepare(str(found.root))
    job = ScoringJob.of(stored, found.root, place, device="cpu", engine="torch")
    for shard in plan_shards(found, place.settings.columns, place.settings.limits).shards:
        score_shard(job, shard, "missing")


@pytest.fixture
def registry(tmp_path: Path, untrained: dict[str, Path]) -> Path:
    """A registry whose champion was never trained."""
    folder = untrained["additive"]
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    opened = Registry.open(str(tmp_path / "registry"))
    opened.promote(opened.publish(files, {"test": {"accuracy": 0.0}}, "# A test's checkpoint\n").version, "a test")
    return tmp_path / "registry"


@pytest.fixture
def output(dataset_copy: Path, registry: Path, tmp_path: Path) -> Path:
    """The copied dataset, scored by the champion, to be changed at will."""
    _score(dataset_copy, tmp_path / "output", registry)
    return tmp_path / "output"


def _rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    metadata = {key: value for key, value in pq.read_metadata(path).metadata.items() if key != b"ARROW:schema"}
    pq.write_table(change(pq.read_table(path, partitioning=None)).replace_schema_metadata(metadata), path)


def _set(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value(values[row])
    field = table.schema.field(column)
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))


def test_commands_that_look_do_not_load_prefect_and_plan_not_even_torch() -> None:
    code = (
        "import sys; from flows.cli import app, outputs; "
        "print({'prefect', 'torch'} & {name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


class TestPlan:
    def test_new_output_misses_everything_and_stays_unmade(
        self, attnlstm: Run, dataset: Path, registry: Path, tmp_path: Path
    ) -> None:
        ended = attnlstm("plan", str(dataset), str(tmp_path / "new"), "--registry", str(registry))

        assert (ended.code, ended.err) == (DONE, "")
        assert "4 missing" in ended.out
        assert "420 rows in 4 shards" in ended.out
        assert "unknown: no run has scored anything here yet" in ended.out
        assert not (tmp_path / "new").exists()

    def test_reasons_are_counted(self, attnlstm: Run, dataset_copy: Path, output: Path, registry: Path) -> None:
        shutil.copytree(dataset_copy / "date=2026-11-01", dataset_copy / "date=2026-11-03")  # missing
        _rewrite(dataset_copy / "date=2026-11-02/part-0.parquet", lambda table: table[:50])  # changed
        shutil.rmtree(dataset_copy / "date=2026-11-04")  # orphaned
        (dataset_copy / "broken.parquet").write_text("not Parquet")

        ended = attnlstm("plan", str(dataset_copy), str(output), "--registry", str(registry), "--json")

        told = json.loads(ended.out)
        assert ended.code == DONE
        assert told["shards"] == {"missing": 1, "input changed": 1, "stale": 0, "up to date": 2, "orphaned": 2}
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
        text = attnlstm("plan", str(dataset_copy), str(output), "--registry", str(registry)).out
        assert "1 missing, 1 input changed, 2 up to date" in text
        assert "broken.parquet: not a whole Parquet file" in text

    @pytest.mark.parametrize(("mode", "pending"), [("missing", []), ("stale", ["stale"] * 4), ("all", ["stale"] * 4)])
    def test_mode_decides_what_is_done_about_stale_shards(
        self, attnlstm: Run, dataset_copy: Path, output: Path, untrained: dict[str, Path], mode: str, pending: list[str]
    ) -> None:
        other = str(untrained["multihead"])

        ended = attnlstm("plan", str(dataset_copy), str(output), "--checkpoint", other, "--mode", mode, "--json")

        told = json.loads(ended.out)
        assert told["shards"]["stale"] == 4
        assert [each["reason"] for each in told["pending"]] == pending

    def test_layout_is_that_of_the_output_unless_it_is_given(
        self, attnlstm: Run, dataset: Path, registry: Path, tmp_path: Path
    ) -> None:
        place = tmp_path / "output"
        _score(dataset, place, registry, "top:2")

        ended = attnlstm("plan", str(dataset), str(place), "--registry", str(registry), "--json")
        refused = attnlstm("plan", str(dataset), str(place), "--registry", str(registry), "--save-attention", "full")

        assert json.loads(ended.out)["shards"]["up to date"] == 4
        assert refused.code == FAILED
        assert "save_attention: 'top:2' there, 'full' asked for" in refused.err

    def test_expected_time_is_by_the_last_run_that_scored_anything(
        self, attnlstm: Run, dataset_copy: Path, output: Path, registry: Path
    ) -> None:
        # 105 rows of 20 tokens each, 700 tokens a second: 3 s. The newer one scored nothing.
        for run_id, shards in (("one", (ShardRecord("a", "missing", 105, 2100, 0, {}, {}, 3.0),)), ("two", ())):
            manifest = RunManifest(
                run_id, run_id, "completed", "", "", "", "", "missing", "v", "d", {}, "torch on cpu", 1, 0, 3.0, shards
            )
            write_manifest(Location.parse(output), manifest)
        (output / "runs" / "three.json").write_text("cut sh")
        shutil.copytree(dataset_copy / "date=2026-11-01", dataset_copy / "date=2026-11-03")

        told = json.loads(attnlstm("plan", str(dataset_copy), str(output), "--registry", str(registry), "--json").out)

        assert told["expected"] == {"seconds": 3.0, "tokens_per_second": 700, "run_id": "one", "engine": "torch on cpu"}
        text = attnlstm("plan", str(dataset_copy), str(output), "--registry", str(registry)).out
        assert "about 3 s" in text


class TestVerify:
    def test_right_output(self, attnlstm: Run, dataset_copy: Path, output: Path, registry: Path) -> None:
        ended = attnlstm("verify", str(dataset_copy), str(output), "--registry", str(registry))

        assert (ended.code, ended.out, ended.err) == (DONE, "420 rows in 4 files are right.\n", "")

    def test_output_that_the_flow_wrote_is_right(self, attnlstm: Run, dataset: Path, scored: Any, trained: Any) -> None:
        where = (str(dataset), str(scored.output), "--registry", str(trained.registry))

        ended = attnlstm("verify", *where, "--deep", "50", "--json")

        told = json.loads(ended.out)
        assert (ended.code, told["rows"], told["files"], told["problems"]) == (DONE, 420, 4, [])
        assert told["scored_again"]["rows"] > 40
        assert told["scored_again"]["difference"] <= 1e-5
        assert "4 up to date" in attnlstm("plan", *where).out

    def test_wrong_output_fails_and_says_where(
        self, attnlstm: Run, dataset_copy: Path, output: Path, registry: Path
    ) -> None:
        _rewrite(output / "predictions" / PART, lambda table: _set(table, "id", 7, lambda was: f"{was}!"))
        where = (str(dataset_copy), str(output), "--registry", str(registry))

        ended = attnlstm("verify", *where)
        told = json.loads(attnlstm("verify", *where, "--json").out)

        assert ended.code == FAILED
        assert ended.out == f"wrong  predictions/{PART}, row 7: id is 'row-112!', expected 'row-112'\n"
        assert told["problems"] == [
            {"path": f"predictions/{PART}", "row": 7, "what": "id is 'row-112!', expected 'row-112'"}
        ]

    def test_a_slice_is_verified_alone(self, attnlstm: Run, dataset_copy: Path, output: Path, registry: Path) -> None:
        (output / "predictions" / PART).unlink()

        slices = [
            attnlstm("verify", str(dataset_copy / date), str(output), "--registry", str(registry))
            for date in ("date=2026-11-01", "date=2026-11-02")
        ]

        assert [ended.code for ended in slices] == [DONE, FAILED]
        assert slices[0].out == "105 rows in 1 file are right.\n"
        assert slices[1].out == f"wrong  predictions/{PART}: missing\n"

    @pytest.mark.parametrize("saving", ["full", "top:3", "none"])
    def test_deep_finds_scores_that_the_checkpoint_did_not_give(
        self, attnlstm: Run, dataset_copy: Path, registry: Path, tmp_path: Path, saving: str
    ) -> None:
        place = tmp_path / "output"
        _score(dataset_copy, place, registry, saving)
        where = (str(dataset_copy), str(place), "--registry", str(registry), "--deep", "420")
        right = attnlstm("verify", *where)
        # Still probabilities with the same winner, and weights that sum to 1: only scoring again can tell.
        _rewrite(place / "predictions" / PART, lambda table: _set(table, "probabilities", 7, _nudge))
        _rewrite(place / "predictions" / PART, _scored_by_largest)
        if saving == "full":
            _rewrite(place / "attention" / PART, lambda table: _set(table, "weights", 9, lambda was: was[::-1]))

        shallow = attnlstm("verify", *where[:-2])
        deep = attnlstm("verify", *where)

        assert right.code == DONE
        assert right.out.splitlines()[1].startswith("412 rows scored again, ")
        assert shallow.code == DONE
        assert deep.code == FAILED
        assert f"wrong  predictions/{PART}, row 7: differs by " in deep.out
        assert (f"wrong  attention/{PART}, row 9: differs by " in deep.out) == (saving == "full")

    def test_deep_takes_the_same_rows_each_time(
        self, attnlstm: Run, dataset_copy: Path, output: Path, registry: Path
    ) -> None:
        _rewrite(output / "predictions" / PART, _all_nudged)
        where = (str(dataset_copy), str(output), "--registry", str(registry), "--deep", "40", "--json")

        first, second = (json.loads(attnlstm("verify", *where).out) for _ in range(2))

        assert first == second
        assert 0 < len(first["problems"]) < 40

    def test_deep_needs_the_checkpoint_that_scored(
        self,
        attnlstm: Run,
        dataset_copy: Path,
        output: Path,
        registry: Path,
        untrained: dict[str, Path],
        tmp_path: Path,
    ) -> None:
        where = ("verify", str(dataset_copy), str(output), "--registry", str(tmp_path / "elsewhere"), "--deep", "9")

        without = attnlstm(*where)
        other = attnlstm(*where, "--checkpoint", str(untrained["multihead"]))
        by_folder = attnlstm(*where, "--checkpoint", str(untrained["additive"]))

        assert without.code == other.code == FAILED
        assert "was scored by checkpoint" in without.err
        assert "name its registry with --registry, or its folder with --checkpoint" in without.err
        assert by_folder.code == DONE

    def test_without_the_checkpoint_everything_else_is_verified(
        self, attnlstm: Run, dataset_copy: Path, output: Path, tmp_path: Path
    ) -> None:
        ended = attnlstm("verify", str(dataset_copy), str(output), "--registry", str(tmp_path / "elsewhere"))

        assert (ended.code, ended.out) == (DONE, "420 rows in 4 files are right.\n")


def _nudge(probabilities: list[float] | None) -> list[float] | None:
    """A thousandth more for the largest, taken from the others."""
    if probabilities is None:
        return None
    largest = max(range(len(probabilities)), key=probabilities.__getitem__)
    mixed = [0.999 * each for each in probabilities]
    mixed[largest] += 0.001
    return mixed


def _scored_by_largest(table: pa.Table) -> pa.Table:
    scores = [max(each) if each else None for each in table["probabilities"].to_pylist()]
    field = table.schema.field("score")
    return table.set_column(table.schema.get_field_index("score"), field, pa.array(scores, field.type))


def _all_nudged(table: pa.Table) -> pa.Table:
    field = table.schema.field("probabilities")
    nudged = pa.array([_nudge(each) for each in table["probabilities"].to_pylist()], field.type)
    return _scored_by_largest(table.set_column(table.schema.get_field_index("probabilities"), field, nudged))


class TestPrune:
    @pytest.fixture
    def orphaned(self, dataset_copy: Path, output: Path) -> list[str]:
        """An input is gone and a run was killed: the paths that are to be removed."""
        (dataset_copy / PART).unlink()
        left = "predictions/date=2026-11-01/.part-0.parquet.0123abcd.tmp"
        (output / left).write_bytes(b"unfinished")
        return sorted([f"attention/{PART}", f"predictions/{PART}", left])

    def test_a_dry_run_says_what_it_would_remove_and_leaves_it(
        self, attnlstm: Run, dataset_copy: Path, output: Path, orphaned: list[str]
    ) -> None:
        ended = attnlstm("prune", str(dataset_copy), str(output), "--dry-run")

        assert ended.code == DONE
        assert f"would remove  predictions/{PART} (input is gone)" in ended.out
        assert "(left by a killed run)" in ended.out
        assert "Would remove 3 files of " in ended.out
        assert all((output / path).exists() for path in orphaned)

    def test_orphans_and_leftovers_are_removed_and_named(
        self, attnlstm: Run, dataset_copy: Path, output: Path, registry: Path, orphaned: list[str]
    ) -> None:
        told = json.loads(attnlstm("prune", str(dataset_copy), str(output), "--json").out)

        assert sorted(each["path"] for each in told["removed"]) == orphaned
        assert (told["dry_run"], told["left"]) == (False, [])
        assert not any((output / path).exists() for path in orphaned)
        assert not (output / "predictions/date=2026-11-02").exists()
        assert attnlstm("prune", str(dataset_copy), str(output)).out == "Nothing to remove.\n"
        verified = attnlstm("verify", str(dataset_copy), str(output), "--registry", str(registry))
        assert verified.out == "315 rows in 3 files are right.\n"

    def test_a_file_of_unknown_origin_is_named_and_left(self, attnlstm: Run, dataset_copy: Path, output: Path) -> None:
        shutil.copy(dataset_copy / PART, output / "predictions/mine.parquet")

        ended = attnlstm("prune", str(dataset_copy), str(output))

        assert "left  predictions/mine.parquet (unknown origin)" in ended.out
        assert (output / "predictions/mine.parquet").exists()

    def test_while_a_run_holds_the_output_nothing_is_removed(
        self, attnlstm: Run, dataset_copy: Path, output: Path, orphaned: list[str]
    ) -> None:
        with only_run(Location.parse(output), "steady heron"):
            ended = attnlstm("prune", str(dataset_copy), str(output))

        assert ended.code == FAILED
        assert "Another run is writing to" in ended.err
        assert "steady heron" in ended.err
        assert all((output / path).exists() for path in orphaned)

    def test_a_glob_removes_nothing_for_inputs_that_are_gone(
        self, attnlstm: Run, dataset_copy: Path, output: Path, orphaned: list[str]
    ) -> None:
        attnlstm("prune", f"{dataset_copy}/*/part-0.parquet", str(output))

        assert (output / "predictions" / PART).exists()

    def test_the_input_of_another_output_removes_nothing(
        self, attnlstm: Run, dataset_copy: Path, output: Path, tmp_path: Path
    ) -> None:
        other = shutil.copytree(dataset_copy, tmp_path / "other")

        ended = attnlstm("prune", str(other), str(output))

        assert ended.code == FAILED
        assert "source:" in ended.err
        assert (output / "predictions" / PART).exists()


@pytest.mark.parametrize("command", ["verify", "prune"])
def test_a_folder_that_is_no_output_is_refused(attnlstm: Run, dataset: Path, tmp_path: Path, command: str) -> None:
    ended = attnlstm(command, str(dataset), str(tmp_path / "nowhere"))

    assert ended.code == FAILED
    assert ended.err == (
        f"Error: {tmp_path / 'nowhere'} is no output of attnlstm: it has no _dataset.json. Check the path.\n"
    )
    assert not (tmp_path / "nowhere").exists()


def test_a_negative_sample_is_wrong_use(attnlstm: Run, dataset: Path, tmp_path: Path) -> None:
    assert attnlstm("verify", str(dataset), str(tmp_path), "--deep", "-1").code == WRONG_USE
