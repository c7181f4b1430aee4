"""What lies in an output that no input accounts for, and its removal.

Owns the judgement of which predictions and attention files are orphans, and which files a killed run left behind.
Knows nothing about rows: names, stamps and whether an input is there decide. In doubt a file is kept.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.fs as pafs

from storage.footers import FOOTER_READERS
from storage.input.hive import hidden_part
from storage.input.sources import Source
from storage.locations import TEMPORARY_SUFFIX, Location
from storage.output.layout import ATTENTION, PREDICTIONS, RUNS, Output, read_stamp
from storage.output.plan import OutputPlan

Reason = Literal["input is gone", "superseded", "read by another name", "unknown origin", "left by a killed run"]

_KINDS = (PREDICTIONS, ATTENTION)
_PART = re.compile(r"-\d{5,}-of-\d{5,}$")
# As `Location.replacing` names them.
_TEMPORARY = re.compile(rf"\.(.+)\.[0-9a-f]{{8}}{re.escape(TEMPORARY_SUFFIX)}")


@dataclass(frozen=True, order=True)
class Removable:
    """A file of the output that no input accounts for, so that `remove` may take it away.

    path: below the output's root. reason: "input is gone"; "superseded", where the input is now cut into other shards,
    and "read by another name", where links lead from what it was made from to a file of the source, so that its rows
    would be there twice; "unknown origin", a file without a stamp, which is never removed; "left by a killed run".
    input: the input file that it was made from, by the name that it has now; "" where that is not known.
    """

    path: str
    reason: Reason
    input: str
    num_bytes: int

    @property
    def why(self) -> str:
        """The reason in a message."""
        if self.reason == "read by another name":
            return f"its input is read as {self.input}"
        return f"superseded, {self.input} is cut otherwise now" if self.reason == "superseded" else self.reason

    @property
    def is_twice(self) -> bool:
        """Whether its rows are in the source by another name or cut, so that a run removes it before it scores."""
        return self.reason in ("superseded", "read by another name")

    @property
    def is_kept(self) -> bool:
        """Whether it is only told of, and left where it is."""
        return self.reason == "unknown origin"


def find_orphans(plan: OutputPlan) -> tuple[Removable, ...]:
    """Predictions and attention files in the scope of the plan's source that no shard of it writes, in order of path.

    An input that can't be read keeps its output, and so does one that exists without being part of the source.
    Attention of a planned shard that has no predictions yet is not an orphan. Which names a glob would have matched is
    not known, so with one nothing is said of inputs that are gone.
    """
    source = plan.source
    stem = source.scope.removesuffix(".parquet")
    found = _orphans(plan, lambda name: not _is_one_file(source) or stem in _stems(name))
    return tuple(each for each in found if each.is_twice or not source.is_pattern)


def orphans_in_words(found: Sequence[Removable]) -> str:
    """The first of the orphans, one at least, with the reason, and how many there are."""
    files, are = ("file", "is") if len(found) == 1 else ("files", "are")
    return (
        f"{len(found):,} {files} in the output that no input accounts for {are} read with the others, such as "
        f"{found[0].path} ({found[0].why}); attnlstm prune shows and removes them"
    )


def _orphans(plan: OutputPlan, may_be: Callable[[str], bool]) -> list[Removable]:
    """Those in the scope, in order of path. may_be: whether a file of this name is looked at, footer and all."""
    source, output = plan.source, plan.output
    folder = os.path.dirname(source.scope) if _is_one_file(source) else source.scope
    planned = {shard.name for shard in plan.shards}
    folders = _folders(planned)
    named = {file.relative for file in source.files}
    unreadable = {file.file for file in plan.unreadable}

    candidates = [each for each in _files(output, folder) if each[1] not in planned and may_be(each[1])]
    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        made_from = dict(zip(candidates, pool.map(lambda each: _made_from(output, each[0]), candidates), strict=True))
        others = sorted({file for each in candidates for file in _inputs(each[1], made_from[each])} - named)
        exists = dict(zip(others, pool.map(lambda file: _exists(source.root / file), others), strict=True))
    reals = {_real(source, file): file for file in named - unreadable} if any(exists.values()) else {}

    found = []
    for path, name, num_bytes in candidates:
        file = made_from[path, name, num_bytes]
        possible = _inputs(name, file)
        other_name = reals.get(_real(source, file)) if exists.get(file) else None
        if possible & unreadable or (other_name is None and any(exists.get(each) for each in possible)):
            continue
        if file and _is_one_file(source) and file != source.scope:
            continue  # of another input, whose name looks like a shard of this one
        # Where a folder has taken the place of a file, or the other way round, one is in the way of the other.
        is_superseded = file in named or (file and (name in folders or not planned.isdisjoint(_folders([name]))))
        reason: Reason = "superseded" if is_superseded else "input is gone" if file else "unknown origin"
        if other_name is not None:
            reason, file = "read by another name", other_name
        found.append(Removable(path, reason, file, num_bytes))
    return sorted(found)


def find_leftovers(output: Output, scope: str = "") -> tuple[Removable, ...]:
    """Temporary files of runs that were killed, in order of path. Hold the output's scope: a live run has them too.

    scope: the folder or file below the root of the input that is looked at; "" for the whole output. Nothing in an
    object store, where unfinished files are never seen.
    """
    if not output.root.is_local or not output.root.is_folder():
        return ()
    if scope:
        infos = [info for kind in _KINDS for info in (output.root / f"{kind}/{os.path.dirname(scope)}").walk()]
    else:
        infos = list(output.root.filesystem.get_file_info(pafs.FileSelector(output.root.path)))
        infos += [info for folder in (*_KINDS, RUNS) for info in (output.root / folder).walk()]
    return tuple(
        sorted(
            Removable(output.root.relative(info.path), "left by a killed run", "", info.size)
            for info in infos
            if info.type == pafs.FileType.File and _is_leftover(output.root.relative(info.path), scope)
        )
    )


def _is_leftover(path: str, scope: str) -> bool:
    """Whether a path below the output's root is that of a temporary file for something in the scope."""
    folder, name = os.path.split(path)
    temporary = _TEMPORARY.fullmatch(name)
    if not temporary or not scope:
        return bool(temporary)
    shard = os.path.join(folder, temporary[1]).partition("/")[2]
    return shard.startswith(f"{scope}/") or scope.removesuffix(".parquet") in _stems(shard)


def clear_superseded(plan: OutputPlan) -> tuple[str, ...]:
    """Remove what earlier runs made of the plan's inputs under names that they no longer have, and their leftovers.

    To be called before scoring, with the scope of the plan's source held: an input that has grown or shrunk to another
    number of shards is then never there twice. Returns the paths removed, below the output's root.
    """
    files = {shard.file for shard in plan.shards}
    stems = {file.removesuffix(".parquet") for file in files}
    # Names first: the footers of a large output are many, those of names that only other shards or links had are few.
    planned = {shard.name for shard in plan.shards}
    folders = _folders(planned)

    def may_be(name: str) -> bool:
        in_the_way = name in folders or not planned.isdisjoint(_folders([name]))
        return in_the_way or not stems.isdisjoint(_stems(name)) or _may_be_link(plan.source, name)

    found = _orphans(plan, may_be)
    twice = [each for each in found if each.is_twice]
    return remove(plan.output, [*twice, *find_leftovers(plan.output, plan.source.scope)])


def remove(output: Output, found: Iterable[Removable]) -> tuple[str, ...]:
    """Delete what is not kept and, on a local disk, the partition folders that this empties. Returns their paths.

    Predictions go first: stopped halfway, there is attention without predictions, which no reader takes for a result.
    """
    paths = [each.path for each in found if not each.is_kept]
    paths.sort(key=lambda path: (not path.startswith(f"{PREDICTIONS}/"), path))
    for path in paths:
        (output.root / path).delete()
    if output.root.is_local:
        for path in paths:
            _remove_empty_folders(Path(output.root.path), Path(path).parent)
    return tuple(paths)


def _remove_empty_folders(root: Path, folder: Path) -> None:
    # `predictions` and `attention` themselves stay, as readers' globs name them.
    while len(folder.parts) > 1:
        with suppress(OSError):  # not empty, or already gone
            (root / folder).rmdir()
        folder = folder.parent


def _files(output: Output, folder: str) -> list[tuple[str, str, int]]:
    """(path below the root, name of the shard, bytes) of the Parquet files in both kinds of `folder`."""
    found = []
    for kind in _KINDS:
        base = output.root / kind
        for info in (base / folder).walk():
            name = base.relative(info.path)
            if info.type == pafs.FileType.File and name.endswith(".parquet") and hidden_part(name) is None:
                found.append((f"{kind}/{name}", name, info.size))
    return found


def _is_one_file(source: Source) -> bool:
    return [file.relative for file in source.files] == [source.scope]


def _stems(name: str) -> set[str]:
    """The inputs, without .parquet, that could be written to this name: whole, or as one of several shards."""
    stem = name.removesuffix(".parquet")
    return {stem, _PART.sub("", stem)}


def _inputs(name: str, made_from: str) -> set[str]:
    """The input that a file was made from or, if that is not known, those that its name would fit."""
    return {made_from} if made_from else {file for stem in _stems(name) for file in (stem, f"{stem}.parquet")}


def _made_from(output: Output, path: str) -> str:
    """The input that a file of the output was made from; "" if it does not say."""
    stamp = read_stamp(output.root / path)
    return stamp.file if stamp else ""


def _folders(names: Iterable[str]) -> set[str]:
    """The folders that files of these names lie in, and those that these lie in."""
    return {"/".join(parts[:depth]) for parts in (name.split("/") for name in names) for depth in range(1, len(parts))}


def _real(source: Source, file: str) -> str:
    """Where a file of the source lies, links resolved."""
    place = source.root / file
    return os.path.realpath(place.path) if place.is_local else place.path


def _may_be_link(source: Source, name: str) -> bool:
    """Whether there is a link on the way to an input that could be written to this name."""
    root = _real(source, "")
    return any(_real(source, file) != os.path.join(root, file) for file in _inputs(name, ""))


def _exists(location: Location) -> bool:
    return location.is_file()
