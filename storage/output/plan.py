"""What a run would do with an input and its output: which shards it would score, and why. From footers alone.

Owns finding the two, cutting the input into shards, and comparing these with what the output has committed. The output
itself is read, never a log of runs. Knows nothing about scoring, nor about files that no input accounts for.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

from storage.errors import OutputError
from storage.footers import FOOTER_READERS
from storage.input.shards import Shard, UnreadableFile, plan_shards
from storage.input.sources import Source, find_source, refuse_nested
from storage.input.tokens import TokenRules, may_be_mended
from storage.locations import Location
from storage.locks import alone
from storage.output.carried import Types, common_types, misfits
from storage.output.layout import Output, Stamp, read_stamp
from storage.output.row_errors import errors_in
from storage.registry.checkpoints import CheckpointId

Mode = Literal["missing", "stale", "errors", "all"]

UP_TO_DATE = "up to date"
# What each mode leaves as it is.
_LEFT: dict[Mode, set[str]] = {
    "missing": {UP_TO_DATE, "stale"},
    "stale": {UP_TO_DATE},
    "errors": {UP_TO_DATE, "stale"},
    "all": set(),
}


@dataclass(frozen=True)
class Pending:
    """A shard and why it is to be scored: "missing", "input changed", "with errors", "stale" or "asked for"."""

    shard: Shard
    reason: str


@dataclass(frozen=True)
class OutputPlan:
    """An input, cut into shards with the settings of its output.

    notes: what is worth a word, though nothing fails. types: of id and kept columns, as its files have them.
    files_of_types: which files have each of these.
    """

    source: Source
    output: Output
    shards: tuple[Shard, ...]
    unreadable: tuple[UnreadableFile, ...]
    notes: tuple[str, ...] = ()
    types: tuple[Types, ...] = ()
    files_of_types: tuple[tuple[str, ...], ...] = ()

    def misfits(self) -> tuple[str, ...]:
        """The files that will fail for the types of their columns, as far as these tell: a value may not fit either."""
        wanted = {**common_types(self.types), **self.output.types}
        found = []
        for types, (first, *others) in zip(self.types, self.files_of_types, strict=True):
            more = f" and {len(others):,} more of such types" if others else ""
            found += [f"{first}{more} will fail: {each}" for each in misfits(types, wanted)]
        return tuple(found)

    def prepare(self, classes: pa.Array) -> Output:
        """The output as it is recorded from now on: see `Output.prepare`."""
        with alone(self.output.root):  # of several first runs side by side, one says what the types are
            return self.output.prepare(str(self.source.root), self.types, classes)

    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)

    def stamps(self) -> dict[str, Stamp]:
        """The stamps of the predictions files that are there, by the shard's name. Reads a footer of each."""
        with ThreadPoolExecutor(FOOTER_READERS) as pool:
            stamps = pool.map(lambda shard: read_stamp(self.output.predictions(shard.name)), self.shards)
            return {shard.name: stamp for shard, stamp in zip(self.shards, stamps, strict=True) if stamp}

    def committed(self) -> dict[str, Stamp]:
        """The stamps of the shards that have a committed output, by name, whatever it was made from.

        That is a predictions file and, unless no attention is saved, an attention file, both made from the same input
        by the same checkpoint. Reads the footers of both.
        """
        with ThreadPoolExecutor(FOOTER_READERS) as pool:
            found = pool.map(self._committed, self.shards)
            return {shard.name: stamp for shard, stamp in zip(self.shards, found, strict=True) if stamp}

    def reasons(
        self,
        checkpoint: CheckpointId,
        committed: Mapping[str, Stamp] | None = None,
        mending: TokenRules | None = None,
    ) -> dict[str, str]:
        """Why each shard would be scored with a checkpoint, by its name: "missing", "input changed" and the like.

        A shard is "up to date" if it has a committed output, for the input as it is now, of this checkpoint; it is
        "stale" if that is of another checkpoint, and "with errors" if rows of it were refused that are not refused now:
        for another max_tokens than the output has by now or, with `mending`, by any rules but these, which takes a look
        at the errors. committed: as `committed` gives it, if it was called before.
        """
        stamps = self.committed() if committed is None else committed
        found = {
            shard.name: _reason(
                stamps.get(shard.name),
                Stamp.of(shard, checkpoint, self.output.settings),
                self.output.settings.max_tokens,
            )
            for shard in self.shards
        }
        if mending:
            for name, reason in found.items():
                if reason in (UP_TO_DATE, "stale") and stamps[name].num_errors != 0:
                    errors = errors_in(self.output.predictions(name))
                    if any(may_be_mended(error, mending) for error in errors):
                        found[name] = "with errors"
        return found

    def selected(self, reasons: Mapping[str, str], mode: Mode) -> tuple[Pending, ...]:
        """The shards that a run of this mode would score, in order. reasons: as `reasons` gives them.

        mode: "missing", those without a committed output for the input as it is now; "stale", also those that another
        checkpoint scored; "errors", instead those that `reasons` finds with errors to mend; "all", every one.
        """
        chosen = ((shard, reasons[shard.name]) for shard in self.shards if reasons[shard.name] not in _LEFT[mode])
        return tuple(Pending(shard, "asked for" if reason == UP_TO_DATE else reason) for shard, reason in chosen)

    def pending(self, checkpoint: CheckpointId, mode: Mode) -> tuple[Pending, ...]:
        """The shards to score, in order. All of them are "asked for" with mode "all", which reads nothing."""
        if mode == "all":
            return tuple(Pending(shard, "asked for") for shard in self.shards)
        return self.selected(self.reasons(checkpoint), mode)

    def _committed(self, shard: Shard) -> Stamp | None:
        stamp = read_stamp(self.output.predictions(shard.name))
        if stamp is None or self.output.settings.attention.kind == "none":
            return stamp
        # Attention is put in place first; if it is of another making, a run was stopped between the two.
        return stamp if read_stamp(self.output.attention(shard.name)) == stamp else None


def plan_output(source: str, output: Output) -> OutputPlan:
    """Find the input and plan its shards.

    Raises SourceError if there is no input, OutputError if the output was made otherwise, or from another input.
    """
    found = find_source(source)
    refuse_nested(found.root / found.scope, output.root, is_pattern=found.is_pattern)
    output.settings.columns.refuse_partitions(file.relative for file in found.files)
    output.check(str(found.root))
    cut = plan_shards(found, output.settings.columns, output.settings.limits)
    return OutputPlan(found, output, cut.shards, cut.unreadable, cut.notes, cut.types, cut.files_of_types)


def existing_output(output: str) -> Output:
    """The output at a path or URI, with the settings it was made with. Raises OutputError if there is none."""
    place = Location.parse(output)
    existing = Output.existing(place)
    if existing is None:
        raise OutputError(f"{place} is no output of attnlstm: it has no _dataset.json. Check the path.")
    return existing


def _reason(found: Stamp | None, wanted: Stamp, max_tokens: int | None) -> str:
    if found is None:
        return "missing"
    same_checkpoint = replace(found, checkpoint=wanted.checkpoint, checkpoint_digest=wanted.checkpoint_digest)
    if same_checkpoint != wanted:
        return "input changed"
    if found.refused_above not in (None, max_tokens):
        return "with errors"
    return UP_TO_DATE if found.checkpoint_digest == wanted.checkpoint_digest else "stale"
