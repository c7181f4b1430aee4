"""Reading an output back as Polars lazy frames, for notebooks and reports."""

import re
from urllib.parse import parse_qs, unquote, urlsplit

import polars as pl

from storage.errors import OutputError
from storage.locations import Location, without_credentials
from storage.output.layout import ATTENTION, PREDICTIONS


def open_predictions(output: str) -> pl.LazyFrame:
    """The predictions of an output, one row for each input row, with Hive partitions as columns.

    output: the folder or URI that `classify` wrote. Rows are in order of file name and then of the input.
    Raises OutputError if there are none.
    """
    return _scan(output, PREDICTIONS)


def open_attention(output: str) -> pl.LazyFrame:
    """The predictions with the attention weights of each row beside them: `weights`, and `positions` for top:K.

    The two are put side by side by position, so ids need not be unique. Raises OutputError if no attention was saved.
    """
    attention = _scan(output, ATTENTION).select(pl.col("^weights$|^positions$"))
    return pl.concat([_scan(output, PREDICTIONS), attention], how="horizontal")


def _scan(output: str, part: str) -> pl.LazyFrame:
    address, options = _for_polars(output)
    try:
        frame = pl.scan_parquet(
            f"{address.rstrip('/')}/{part}/**/*.parquet", hive_partitioning=True, storage_options=options
        )
        frame.collect_schema()
    except (pl.exceptions.ComputeError, FileNotFoundError):
        raise OutputError(
            f"{without_credentials(output)} has no {part}. Check the path, and what `save_attention` was set to."
        ) from None
    return frame


def _for_polars(output: str) -> tuple[str, dict[str, str] | None]:
    """An address and storage options as Polars has them, of a URI as `pyarrow.fs` has it.

    Both take credentials from the environment; what an S3 URI itself says is said in other words to Polars.
    """
    if not output.startswith("s3://"):
        return _literal(Location.parse(output).path if _is_local(output) else output), None
    parts = urlsplit(output)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    options = {}
    if parts.username:
        options["aws_access_key_id"] = unquote(parts.username)
        options["aws_secret_access_key"] = unquote(parts.password or "")
    if "region" in query:
        options["aws_region"] = query["region"]
    if "endpoint_override" in query:
        scheme = query.get("scheme", "https")
        options["aws_endpoint_url"] = f"{scheme}://{query['endpoint_override']}"
        options["aws_allow_http"] = str(scheme == "http").lower()
    return _literal(unquote(without_credentials(output))), options or None


def _is_local(output: str) -> bool:
    return "://" not in output or output.startswith("file://")


def _literal(address: str) -> str:
    """The address as a pattern that means itself."""
    return re.sub(r"[*?\[]", r"[\g<0>]", address)
