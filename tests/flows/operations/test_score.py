"""Scoring some shards together: whatever goes wrong with one is charged to that one."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.operations.score import ScoredShard, ScoringJob, score_bundle
from storage.errors import OutputError
from storage.locations import Location
from storage.output.layout import Output, OutputSettings
from storage.output.manifests import FailureRecord
from storage.output.plan import Pending, plan_output
from storage.registry.checkpoints import Registry

NAMES = ("a.parquet", f"{'x' * 240}.parquet", "z.parquet")


@pytest.fixture
def bundle(tmp_path: Path, untrained_registry: Path) -> tuple[ScoringJob, tuple[Pending, ...]]:
    """Three files of which the middle one's name is as long as names may be. A folder stands where its output would."""
    (tmp_path / "source").mkdir()
    for name in NAMES:
        texts = pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(['{"a": 1}', "[]"]))
        pq.write_table(pa.table({"tokens": texts}), tmp_path / "source" / name)
    stored = Registry.open(str(untrained_registry)).load("champion")
    output = Output(Location.parse(tmp_path / "output"), OutputSettings())
    plan = plan_output(str(tmp_path / "source"), output)
    output.prepare(str(plan.source.root))
    job = ScoringJob.of(stored, plan.source.root, output, device="cpu", engine="torch")
    return job, plan.pending(stored.id, "missing")


def block(job: ScoringJob, name: str) -> Path:
    """Make the output of a shard fail with an OSError."""
    place = Path(job.output.predictions(name).path)
    place.mkdir(parents=True)
    (place / "in the way").touch()
    return place


def test_tokens_of_parquets_json_type_and_long_names_are_scored(
    bundle: tuple[ScoringJob, tuple[Pending, ...]],
) -> None:
    results = score_bundle(*bundle)
    assert [result.record.name for result in results if isinstance(result, ScoredShard)] == list(NAMES)
    assert pq.read_table(bundle[0].output.predictions(NAMES[1]).path)["num_tokens"].to_pylist() == [8, 2]


def test_whatever_an_error_is_the_other_shards_are_scored(bundle: tuple[ScoringJob, tuple[Pending, ...]]) -> None:
    block(bundle[0], NAMES[1])
    first, second, third = score_bundle(*bundle)
    assert isinstance(first, ScoredShard)
    assert isinstance(third, ScoredShard)
    assert isinstance(second, FailureRecord)
    assert second.name == NAMES[1]
    assert second.reason.startswith(("IsADirectoryError: ", "OSError: "))


def test_error_that_may_pass_is_raised_once_the_others_are_scored(
    bundle: tuple[ScoringJob, tuple[Pending, ...]],
) -> None:
    block(bundle[0], NAMES[0])
    with pytest.raises(OSError, match="directory"):
        score_bundle(*bundle, is_retried=lambda error: isinstance(error, OSError))
    assert all(Path(bundle[0].output.predictions(name).path).is_file() for name in NAMES[1:])


@pytest.mark.parametrize("error", [RuntimeError("the run is ending"), OutputError("another run has it now")])
def test_what_is_no_shards_fault_ends_all(error: Exception, bundle: tuple[ScoringJob, tuple[Pending, ...]]) -> None:
    def on_rows(num_rows: int) -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        score_bundle(*bundle, on_rows=on_rows)
