"""Reading an output back as Polars lazy frames, for notebooks and reports."""

import polars as pl

from storage.errors import OutputError


def open_predictions(output: str) -> pl.LazyFrame:
    """The predictions of an output, one row for each input row, with Hive partitions as columns.

    output: the folder or URI that `classify` wrote. Rows are in order of file name and then of the input.
    Raises OutputError if there are none.
    """
    return _scan(output, "predictions")


def open_attention(output: str) -> pl.LazyFrame:
    """The predictions with the attention weights of each row beside them: `weights`, and `positions` for top:K.

    The two are put side by side by position, so ids need not be unique. Raises OutputError if no attention was saved.
    """
    attention = _scan(output, "attention").select(pl.col("^weights$|^positions$"))
    return pl.concat([_scan(output, "predictions"), attention], how="horizontal")


def _scan(output: str, part: str) -> pl.LazyFrame:
    frame = pl.scan_parquet(f"{output.rstrip('/')}/{part}/**/*.parquet", hive_partitioning=True)
    try:
        frame.collect_schema()
    except (pl.exceptions.ComputeError, FileNotFoundError):
        raise OutputError(f"{output} has no {part}. Check the path, and what `save_attention` was set to.") from None
    return frame
