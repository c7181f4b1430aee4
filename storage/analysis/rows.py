"""Input, predictions and attention side by side, as one Polars lazy frame.

Owns which columns come from where, and how those of one name are told apart. How the files of an output become a frame
is for `frames`.
"""

import os
from itertools import groupby

import polars as pl

from storage.analysis.inputs import Inputs
from storage.errors import SourceError
from storage.input.shards import Shard
from storage.locations import address_and_options
from storage.output.frames import FILE, open_attention, open_predictions
from storage.output.layout import Output
from storage.output.plan import existing_output

_INPUT = "input_"


def open_rows(output: str | os.PathLike[str], source: str | os.PathLike[str] | None = None) -> pl.LazyFrame:
    """All that is known of each row of an output: its input, its prediction and its attention.

    output: the folder or URI that `classify` wrote. source: the folder or URI that the input is below now, if that is
    not where the output says.

    `file`, the name of the input file, and `row` say which row it is; where a column `file` is kept, it is the input's.
    Then come the columns of `open_predictions`, those of the attention if any was saved, and the columns of the input
    that the output does not carry. One of these that is called like a column of the output, and is another one, gets
    `input_` before its name. Rows are put side by side by their positions, so ids need not be unique, and memory stays
    flat where Polars streams.
    Raises OutputError as `open_attention` does, and SourceError if an input file is not there or has changed.
    """
    address = os.fspath(output)
    existing = existing_output(address)
    root = Output.recorded_source(address) if source is None else os.fspath(source)
    inputs = Inputs.of(existing, root)
    for file, why in inputs.missing.items():
        raise SourceError(f"{inputs.root / file} can't be put beside its predictions: {why}.")
    has_attention = existing.settings.attention.kind != "none"
    made = open_attention(address) if has_attention else open_predictions(address)
    known = made.collect_schema().names()
    columns = existing.settings.columns
    carried = {*columns.keep, columns.id} & set(known)
    front = [] if "file" in known else ["file"]
    taken = {*front, *known}
    names = dict.fromkeys(name for footer in inputs.footers.values() for name in footer.schema.names)
    added = {name: _INPUT + name if name in taken else name for name in names if name not in carried}
    beside = _input_frame(inputs, root).select(pl.col(FILE), *added).rename(added)
    beside = beside.rename({FILE: "file"}) if front else beside.drop(FILE)
    return pl.concat([made, beside], how="horizontal").select(*front, *known, *added.values())


def _input_frame(inputs: Inputs, root: str) -> pl.LazyFrame:
    """The rows of the input in the order of the predictions, and beside them FILE, the name of their file."""
    address, options = address_and_options(root)

    def kind(shard: Shard) -> object:
        """Neighbours that are equal in this are read in one scan: whole files of the same columns."""
        footer = inputs.footers[shard.file]
        is_whole = footer.metadata.num_rows == shard.num_rows
        return footer.schema.remove_metadata().to_string() if is_whole else shard

    frames = []
    for _, group in groupby(inputs.shards, key=kind):
        shards = list(group)
        files = [shard.file for shard in shards]
        places = [f"{address.rstrip('/')}/{file}" for file in files]
        frame = pl.scan_parquet(
            places, glob=False, hive_partitioning=False, storage_options=options, include_file_paths=FILE
        )
        if len(shards) == 1:
            frame = frame.slice(shards[0].first_row, shards[0].num_rows)
        frames.append(frame.with_columns(pl.col(FILE).replace_strict(places, files)))
    return pl.concat(frames, how="diagonal_relaxed")
