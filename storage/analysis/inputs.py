"""Which input rows the files of an output are of, found from the output: for what is asked of it later.

Whoever scored had a plan of the input. Here the stamps of the predictions files say what it was, and an input file that
is gone, or another one by now, costs its own rows only.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from storage.errors import FileError, OutputError, SourceError, first_line
from storage.footers import FOOTER_READERS, Footer, read_footer
from storage.input.shards import Shard
from storage.locations import Location
from storage.output.layout import PREDICTIONS, Output, Stamp, read_stamp


@dataclass(frozen=True)
class Inputs:
    """What is there of an output's input, below `root`.

    shards: of the predictions files whose input can be read, in order of their names. footers: of the input files, by
    their names. missing: input files that can't be read, or have changed since they were scored, and why.
    """

    root: Location
    shards: tuple[Shard, ...]
    footers: Mapping[str, Footer]
    missing: Mapping[str, str]

    @classmethod
    def of(cls, output: Output, source: str) -> "Inputs":
        """source: folder or URI that the input is below now.

        Raises OutputError if the output has no predictions, and SourceError if nothing of its input can be read.
        """
        root = Location.parse(source)
        folder = output.root / PREDICTIONS
        places = {folder.relative(place.path): place for place in output.predictions_files()}
        with ThreadPoolExecutor(FOOTER_READERS) as pool:
            stamps = dict(zip(places, pool.map(read_stamp, places.values()), strict=True))
            made = {name: stamp for name, stamp in stamps.items() if stamp}
            files = sorted({stamp.file for stamp in made.values()})
            footers = dict(zip(files, pool.map(lambda file: _footer(root / file), files), strict=True))
        if not made:
            raise OutputError(f"{output.root} has no predictions. Check the path.")
        found = {name: _shard(name, stamp, footers[stamp.file]) for name, stamp in made.items()}
        shards = tuple(each for each in found.values() if isinstance(each, Shard))
        missing = {made[name].file: why for name, why in found.items() if isinstance(why, str)}
        missing |= {name: "its predictions do not say what they are of" for name in places if name not in made}
        if not shards:
            file, why = next(iter(missing.items()))
            raise SourceError(
                f"Nothing of the input below {root} can be read as it was when it was scored. First: {file}: {why}. "
                "If the input has moved, name the folder that it is below now."
            )
        readable = {file: footer for file, footer in footers.items() if isinstance(footer, Footer)}
        return cls(root, shards, readable, missing)


def _footer(place: Location) -> Footer | str:
    """The footer of an input file, or why it can't be read."""
    try:
        return read_footer(place)
    except FileNotFoundError:
        return "it is not there"
    except (FileError, OSError) as error:
        return first_line(error)


def _shard(name: str, stamp: Stamp, footer: Footer | str) -> Shard | str:
    """The rows that a predictions file is of, or why they can't be read."""
    if isinstance(footer, str):
        return footer
    if footer.fingerprint != stamp.fingerprint:
        return "it has changed since it was scored"
    groups = range(footer.metadata.num_row_groups)
    starts, first = [], 0
    for group in groups:
        starts.append(first)
        first += footer.metadata.row_group(group).num_rows
    end = stamp.first_row + stamp.num_rows
    inside = [group for group in groups if stamp.first_row <= starts[group] < end]
    first_group, end_group = (inside[0], inside[-1] + 1) if inside else (0, 0)
    return Shard(stamp.file, name, stamp.fingerprint, first_group, end_group, stamp.first_row, stamp.num_rows, 0)
