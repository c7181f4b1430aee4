"""What is measured against the peers: shards scored without Prefect, and the classify flow in this process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attnlstm.engines import EngineName
from script import Task

Run = Callable[[Path, Path], None]


def open_bundles(task: Task, engine: EngineName) -> Run:
    """Shards side by side, as the flow's task runs are."""
    from flows.operations.score import ScoringJob, load_checkpoint, score_bundle
    from storage.input.shards import plan_shards
    from storage.input.sources import find_source
    from storage.locations import Location
    from storage.output.layout import AttentionSaving, Output, OutputSettings
    from storage.output.manifests import FailureRecord
    from storage.output.pending import find_pending
    from storage.registry.checkpoints import Registry

    stored = Registry.open("registry").load(str(task.checkpoint))
    settings = OutputSettings(attention=AttentionSaving.parse(_saving(task)))

    def run(source: Path, output: Path) -> None:
        found = find_source(str(source))
        place = Output(Location.parse(output), settings)
        shards = plan_shards(found, settings.columns, settings.limits).shards
        pending = find_pending(place, shards, stored.id, "missing")
        job = ScoringJob.of(stored, found.root, place, device="cpu", engine=engine, threads=task.threads)
        load_checkpoint(job, stored)
        place.prepare(str(found.root))
        with ThreadPoolExecutor(task.threads) as pool:
            for (result,) in pool.map(lambda each: score_bundle(job, [each]), pending):
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
