"""Reading an output back as Polars lazy frames, for notebooks and reports.

Owns how files that differ become one frame: those of several checkpoints, in partitions and beside them, or with
columns of several types. Knows nothing about how they were written.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import polars as pl

from storage.errors import FileError, OutputError
from storage.footers import FOOTER_READERS, read_footer
from storage.input.columns import ROW
from storage.input.hive import partition_values, unescaped
from storage.locations import Location, address_and_options, without_credentials
from storage.output.layout import ATTENTION, PREDICTIONS, Stamp, classes_in, stamp_in

# Decimal digits that a float64 tells apart.
_FLOAT_DIGITS = 15


def _as_floats(values: pl.Series) -> pl.Series:
    """Raises PolarsError if a value has so many digits that another one might become the same float."""
    if values.str.count_matches(r"\d").cast(pl.Int64).max() > _FLOAT_DIGITS:  # type: ignore[operator]
        raise pl.exceptions.InvalidOperationError(f"more than {_FLOAT_DIGITS} digits")
    return values.cast(pl.Float64)


# The types that a partition's values may have together: what each value of it looks like, and how it is read. Polars
# takes the same. All else is text.
_PARTITION_TYPES: tuple[tuple[str, Callable[[pl.Series], pl.Series]], ...] = (
    (r"-?\d+", lambda values: values.cast(pl.Int64)),
    (r"-?\d*\.?\d+", _as_floats),
    (r"true|false", lambda values: values == "true"),
    (r"\d{4}-\d\d?-\d\d?", lambda values: values.str.to_date("%Y-%m-%d")),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?", lambda values: values.str.to_datetime(time_unit="us")),
)
# Names that no column has: for the time between reading and what is handed out, and of what is added to some files.
PLACE, FILE = "\0place", "\0file"


def open_predictions(output: str | os.PathLike[str]) -> pl.LazyFrame:
    """The predictions of an output, one row for each input row, with Hive partitions as columns.

    output: the folder or URI that `classify` wrote. Rows are in order of file name and then of the input. A file that
    lies in no partition of a name has null there. Where checkpoints know different classes, `probabilities` has all of
    them in the order of `class_names`, with 0 for a class that the row's checkpoint does not know.
    Files of format version 1 have no column `row`; theirs is filled in, unless they keep a column of that name.
    Raises OutputError if there are none, or if one can't be read.
    """
    return _Part.of(output, PREDICTIONS).frame()


def open_attention(output: str | os.PathLike[str]) -> pl.LazyFrame:
    """The predictions with the attention weights of each row beside them: `weights`, and `positions` for top:K.

    The two are put side by side by position, shard by shard, so ids need not be unique. Raises OutputError if no
    attention was saved, or if that of a shard is missing or of another making than its predictions.
    """
    predictions, attention = _Part.of(output, PREDICTIONS), _Part.of(output, ATTENTION)
    beside = attention.of_the_same_making(predictions).frame().select(pl.col("^weights$|^positions$"))
    return pl.concat([predictions.frame(), beside], how="horizontal")


def scan_predictions_files(output: str, names: Sequence[str], first_row: int = 0) -> pl.LazyFrame:
    """Some predictions files of an output, in this order, without their partitions.

    What is selected of it must be of one type in all of these files. Beside their columns it has PLACE, the position of
    a row among all of them from `first_row` on, and FILE, which ends in the name of the row's file.
    """
    address, options = address_and_options(output)
    return pl.scan_parquet(
        [f"{address.rstrip('/')}/{PREDICTIONS}/{name}" for name in names],
        glob=False,
        hive_partitioning=False,
        storage_options=options,
        include_file_paths=FILE,
        row_index_name=PLACE,
        row_index_offset=first_row,
    )


def class_names(output: str | os.PathLike[str]) -> tuple[str, ...]:
    """The classes of an output in the order of `probabilities` in `open_predictions`.

    Those of the checkpoint that knows most of them, then what others know besides.
    Raises OutputError if there are no predictions.
    """
    return _Part.of(output, PREDICTIONS).classes


@dataclass(frozen=True)
class _File:
    """name: below its folder. address: as Polars takes it. partitions: column and value. columns: names and types.

    classes: of predictions. stamp: what the file was made from. lacks_rows: whether `row` is to be filled in.
    """

    name: str
    address: str
    partitions: dict[str, str | None]
    is_plain: bool
    columns: str
    classes: tuple[str, ...]
    stamp: Stamp | None
    num_rows: int
    lacks_rows: bool

    @property
    def kind(self) -> tuple[object, ...]:
        """Neighbours that are equal in this are read in one scan."""
        return tuple(self.partitions), self.is_plain, self.columns, self.classes, self.lacks_rows


@dataclass(frozen=True)
class _Part:
    """The files of predictions or of attention, in order of their names."""

    files: tuple[_File, ...]
    options: dict[str, str] | None
    classes: tuple[str, ...]

    @classmethod
    def of(cls, place: str | os.PathLike[str], part: str) -> "_Part":
        output = os.fspath(place)
        folder = Location.parse(output) / part
        address, options = address_and_options(output)
        names = [folder.relative(place.path) for place in folder.files(".parquet")]
        if not names:
            raise OutputError(
                f"{without_credentials(output)} has no {part}. Check the path, and what `save_attention` was set to."
            )
        root = f"{address.rstrip('/')}/{part}"
        with ThreadPoolExecutor(FOOTER_READERS) as pool:
            files = tuple(pool.map(lambda name: _open(folder, root, name), names))
        return cls(files, options, _merged({file.classes: None for file in files}))

    def of_the_same_making(self, predictions: "_Part") -> "_Part":
        """The files of attention that belong to these of predictions, in their order; others are not committed yet."""
        beside = {file.name: file for file in self.files}
        for file in predictions.files:
            if file.name not in beside or beside[file.name].stamp != file.stamp:
                why = "is of another making" if file.name in beside else "is missing"
                raise OutputError(
                    f"The attention of {file.name} {why}, so it can't be put beside its predictions: a run is on, or "
                    "one was stopped between the two. Run classify again; it scores what is missing."
                )
        return replace(self, files=tuple(beside[file.name] for file in predictions.files))

    def frame(self) -> pl.LazyFrame:
        names = list(dict.fromkeys(name for file in self.files for name in file.partitions))
        values = {name: _typed([file.partitions.get(name) for file in self.files]) for name in names}
        frames, first = [], 0
        for _, group in groupby(self.files, key=lambda file: file.kind):
            files = list(group)
            in_group = {name: values[name][first : first + len(files)] for name in files[0].partitions}
            frames.append(self._scan(files, in_group))
            first += len(files)
        frame = pl.concat(frames, how="diagonal_relaxed") if len(frames) > 1 else frames[0]
        return frame.select(pl.exclude(names), *names) if len(frames) > 1 else frame

    def _scan(self, files: Sequence[_File], partitions: dict[str, pl.Series]) -> pl.LazyFrame:
        """Files of one kind. partitions: by column, the value of each file."""
        first, addresses = files[0], [file.address for file in files]
        # By Polars' own reading, files that a filter leaves out are not opened.
        by_polars = bool(partitions) and first.is_plain
        by_path = first.lacks_rows or (bool(partitions) and not by_polars)
        frame = pl.scan_parquet(
            addresses,
            glob=False,
            storage_options=self.options,
            hive_partitioning=by_polars,
            hive_schema={name: values.dtype for name, values in partitions.items()} if by_polars else None,
            include_file_paths=FILE if by_path else None,
            row_index_name=PLACE if first.lacks_rows else None,
        )
        path = pl.col(FILE)
        if partitions and not by_polars:
            added = [path.replace_strict(addresses, values).alias(name) for name, values in partitions.items()]
            frame = frame.with_columns(added)
        if first.lacks_rows:
            # From the position among the rows of all of these files to that in the file's own input.
            ends = np.cumsum([file.num_rows for file in files])
            shifts = [file.stamp.first_row + file.num_rows - end for file, end in zip(files, ends, strict=True)]  # type: ignore[union-attr]
            row = pl.col(PLACE).cast(pl.Int64) + path.replace_strict(addresses, shifts, return_dtype=pl.Int64)
            frame = frame.select(row.alias(ROW), pl.exclude(PLACE))
        if by_path:
            frame = frame.drop(FILE)
        if first.classes != self.classes:
            frame = frame.with_columns(_with_classes(first.classes, self.classes))
        return frame


def _open(folder: Location, root: str, name: str) -> _File:
    try:
        footer = read_footer(folder / name)
    except (FileError, FileNotFoundError) as error:
        raise OutputError(f"{folder / name}: {error}. Run classify again; it scores what is missing.") from error
    partitions = partition_values(name)
    parts = [part.partition("=") for part in f"{root}/{name}".split("/")[:-1] if "=" in part]
    # Polars reads the whole path, the output's own as well, and takes some names otherwise.
    is_plain = [key for key, _, _ in parts] == list(partitions) and all(
        value and "=" not in value and ("%" not in value or unescaped(value) != value) for _, _, value in parts
    )
    columns = footer.schema.remove_metadata().to_string(show_field_metadata=False)
    stamp = stamp_in(footer)
    lacks_rows = stamp is not None and ROW not in {each.casefold() for each in (*footer.schema.names, *partitions)}
    num_rows = footer.metadata.num_rows
    address = f"{root}/{name}"
    return _File(name, address, partitions, is_plain, columns, classes_in(footer), stamp, num_rows, lacks_rows)


def _merged(all_classes: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Those of the longest, the first of several, and then what others have besides."""
    ordered = sorted(all_classes, key=len, reverse=True)
    return tuple(dict.fromkeys(name for classes in ordered for name in classes))


def _with_classes(has: Sequence[str], wanted: Sequence[str]) -> pl.Expr:
    """`probabilities` in another order of classes, with 0 for those that it lacks; null stays null."""
    place = {name: index for index, name in enumerate(has)}
    chosen = [place.get(name, len(has)) for name in wanted]
    with_zero = pl.concat_list(pl.col("probabilities").arr.to_list(), pl.lit(0, pl.Float32))
    return with_zero.list.gather(pl.lit(pl.Series([chosen]))).list.to_array(len(wanted)).alias("probabilities")


def _typed(values: Sequence[str | None]) -> pl.Series:
    """The values of a partition column as what all of them can be read as."""
    texts = pl.Series(values, dtype=pl.String)
    there = texts.drop_nulls()
    for pattern, read in _PARTITION_TYPES:
        if len(there) and there.str.contains(f"^(?:{pattern})$").all():
            with suppress(pl.exceptions.PolarsError):  # such as the 30th of February
                return read(texts)
    return texts
