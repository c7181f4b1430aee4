"""What is measured against the peers: shards scored without Prefect, and the classify flow in this process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attnlstm.engines import EngineName
from script import Task

Run = Callable[[Path, Path], None]


def open_bundles(task: Task, engine: EngineName) -> Run:
    """Shards side by side, as the flow's task runs are."""
    from flows.operations.score import LoadedCheckpoint, ScoringJob, score_bundle
    from storage.locations import Location
    from storage.output.layout import AttentionSaving, Output, OutputSettings
    from storage.output.manifests import FailureRecord
    from storage.output.plan import plan_output
    from storage.registry.checkpoints import Registry

    stored = Registry.open("registry").load(str(task.checkpoint))
    settings = OutputSettings(attention=AttentionSaving.parse(_saving(task)))

    def run(source: Path, output: Path) -> None:
        place = Output(Location.parse(output), settings)
        plan = plan_output(str(source), place)
        job = ScoringJob.of(stored, plan.source.root, place, device="cpu", engine=engine, threads=task.threads)
        loaded = LoadedCheckpoint(job, stored)
        place.prepare(str(plan.source.root))
        with ThreadPoolExecutor(task.threads) as pool:
            for (result,) in pool.map(
                lambda each: score_bundle(job, [each], loaded), plan.pending(stored.id, "missing")
            ):
                if isinstance(result, FailureRecord):
                    raise RuntimeError(f"{result.name}: {result.reason}")

    return run


def open_flow(task: Task, engine: EngineName) -> Run:
    """`attnlstm classify` on a server that runs already, which is this process's own unless one is named."""
    from flows.cli.server import start_prefect

    start_prefect()
    from flows.classify import classify

    def run(source: Path, output: Path) -> None:
        classify(
            str(source),
            str(output),
            checkpoint=str(task.checkpoint),
            save_attention=_saving(task),
            device="cpu",
            engine=engine,
            workers=task.threads,
        )

    return run


def _saving(task: Task) -> str:
    return "full" if task.attention else "none"
