"""The predictions of an output as a Delta table, which a run changes with one commit, at its end.

Owns what is in the table, and that a commit brings it to what the output holds: nobody sees half a run, and the same
run twice commits once. What to commit is told from the table and the output alone, so a run that was killed before its
commit is completed by the next one. Knows nothing about when a run deserves it. Needs the extra `delta`.

A table's files never change, and an output's do, so each predictions file is written anew, under a name that its
content gives it. It is no link or copy, since Polars reads no list of a fixed size where the table says list, which is
all that Delta has. Partitions are folders, since Polars takes their values from there.
"""

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from storage.described.columns import COMMENT
from storage.errors import OutputError
from storage.input.hive import partition_values
from storage.input.sources import refuse_nested
from storage.locations import Location, address_and_options, without_credentials
from storage.output.layout import PREDICTIONS, STAMP_KEY, Output
from storage.output.plan import OutputPlan

if TYPE_CHECKING:
    from deltalake import DeltaTable

FILE = "file"
"""The column with the input file's name, which with `row` identifies a row. In an output the names of files say it."""

_DESCRIPTION = "Predictions of "
"""Of the table, before the output's place, by which another's table is told: delta-rs takes no keys of one's own."""

_ATTEMPTS = 5
"""Times that a commit is made up anew after another writer came first."""
_HASHED_AT_ONCE = 8 << 20
_ROWS_AT_ONCE = 131_072
_NO_COLUMN = set(" ,;{}()\n\t=")
_WIDER = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.decimal128(20, 0)}


@dataclass(frozen=True)
class Published:
    """What a commit did. version: of the table, after it. With no file added or removed there was none to make."""

    version: int
    num_added: int = 0
    num_removed: int = 0


@dataclass(frozen=True)
class Table:
    """The Delta table of an output's predictions, there yet or not. address, options: of its place, for delta-rs."""

    place: Location
    address: str
    options: dict[str, str] | None
    output: Output

    @classmethod
    def of(cls, place: str, output: Output, source: Location) -> "Table":
        """The table at a path or URI. Raises OutputError if it can't be that of this output, and says why."""
        _imported()
        _check_names(output.settings.columns.keep)  # known before anything is scored; the rest is in the files
        table = cls(Location.parse(place), *address_and_options(place), output)
        refuse_nested(source, table.place)
        refuse_nested(output.root / PREDICTIONS, table.place)
        table._open()
        return table

    def publish(self, plans: Sequence[OutputPlan], scored: Collection[str] = (), run_id: str = "") -> Published:
        """Bring what the table has of these plans to what the output has of them, by one commit or none.

        Hold their scopes, so that nothing is written there meanwhile. scored: shards that were just written; of others
        the time of writing tells whether they have changed. run_id: for the table's history.
        Raises OutputError if something of the output can't be in a Delta table, or other writers always come first.
        """
        deltalake = _imported()
        for _ in range(_ATTEMPTS):
            found = self._open()
            changes = self._changes(plans, set(scored), found)
            if found is not None and not (changes.added or changes.removed):
                return Published(found.version())
            if found is None and not changes.added:
                return Published(-1)
            try:
                return self._commit(found, changes, run_id)
            except deltalake.exceptions.DeltaError as error:
                reason = str(error).splitlines()[0]
                if found is not None and not isinstance(error, deltalake.exceptions.CommitFailedError):
                    break
                if found is None and self._open() is None:
                    break
        raise OutputError(f"The Delta table {self.place} can't be written: {reason}. Run the same command again.")

    def _open(self) -> "DeltaTable | None":
        """The table as it is now; None if there is none."""
        deltalake = _imported()
        try:
            found: DeltaTable = deltalake.DeltaTable(self.address, storage_options=self.options)
        except deltalake.exceptions.TableNotFoundError:
            return None
        except deltalake.exceptions.DeltaError as error:
            raise OutputError(f"The Delta table {self.place} can't be read: {str(error).splitlines()[0]}") from error
        described = found.metadata().description or ""
        if described != f"{_DESCRIPTION}{self.output.root}":
            is_ours = described.startswith(_DESCRIPTION)
            has = f"that of {described.removeprefix(_DESCRIPTION)}" if is_ours else "none that attnlstm made"
            raise OutputError(f"The Delta table {self.place} is {has}, not of {self.output.root}. Publish elsewhere.")
        return found

    def _changes(self, plans: Sequence[OutputPlan], scored: set[str], found: "DeltaTable | None") -> "_Changes":
        files = _files_in(found)
        wanted = list(dict.fromkeys(shard.name for plan in plans for shard in plan.shards))
        columns = found.metadata().partition_columns if found is not None else _partition_columns(wanted)
        changes = _Changes(columns, pa.schema(found.schema()) if found is not None else None)
        infos = self.output.root.filesystem.get_file_info([self.output.predictions(name).path for name in wanted])
        for name, info in zip(wanted, infos, strict=True):
            if info.type != pafs.FileType.File:
                continue  # not scored yet
            there, written = files.pop(_key(name), []), int(info.mtime_ns // 1_000_000)
            if len(there) == 1 and there[0]["modification_time"] == written and name not in scored:
                continue
            path = self._path(name)
            changes.removed += [each for each in there if each["path"] != path]
            if len(there) != sum(each["path"] != path for each in there):
                continue  # written again, and the same
            changes.added.append(self._written(name, path, written, changes))
        gone = [each for left in files.values() for each in left if any(_is_within(each, plan) for plan in plans)]
        if gone:
            kept = self._keys_of_output()
            changes.removed += [each for each in gone if _key_in(each["path"]) not in kept]
        return changes

    def _path(self, name: str) -> str:
        """Where the table has a predictions file: below its partitions, by which it is and what it holds."""
        content = hashlib.sha256()
        with self.output.root.filesystem.open_input_stream(self.output.predictions(name).path) as stream:
            while chunk := stream.read(_HASHED_AT_ONCE):
                content.update(chunk)
        folders = [f"{quote(key, safe='')}={_quoted(value)}" for key, value in partition_values(name).items()]
        return "/".join([*folders, f"{_key(name)}-{content.hexdigest()[:24]}.parquet"])

    def _written(self, name: str, path: str, written: int, changes: "_Changes") -> dict[str, Any]:
        """Put the file at `path`, unless a run that was killed has; gives what a commit says of it."""
        values = partition_values(name)
        if other := [key for key in values if key not in changes.partitions]:
            by = ", ".join(changes.partitions) or "nothing"
            raise OutputError(f"The Delta table {self.place} is partitioned by {by}, and {name} by {other[0]} as well.")
        with pq.ParquetFile(self.output.predictions(name).path, filesystem=self.output.root.filesystem) as file:
            stamp = json.loads(file.metadata.metadata[STAMP_KEY.encode()])
            schema = _delta_schema(file.schema_arrow, changes.partitions)
            changes.settle(schema, name)
            place, num_rows = self.place / path, file.metadata.num_rows
            if not place.is_file():
                with (
                    place.replacing() as temporary,
                    pq.ParquetWriter(
                        temporary, schema, store_schema=False, compression="zstd", write_page_checksum=True
                    ) as writer,
                ):
                    for table in _tables(file, schema, stamp["file"]):
                        writer.write_table(table)
        return {
            "path": path,
            "size_bytes": place.info().size,
            "modification_time": written,
            "num_records": num_rows,
            "partition": {key: values.get(key) for key in changes.partitions},
        }

    def _commit(self, found: "DeltaTable | None", changes: "_Changes", run_id: str) -> Published:
        deltalake = _imported()
        assert changes.schema is not None, "there is a file"
        schema = deltalake.Schema.from_arrow(changes.schema)
        properties = deltalake.CommitProperties(custom_metadata={"attnlstm.run": run_id})
        added = [
            deltalake.transaction.AddAction(
                each["path"],
                each["size_bytes"],
                each["partition"],
                each["modification_time"],
                True,
                json.dumps({"numRecords": each["num_records"]}),
            )
            for each in changes.added
        ]
        if found is None:
            deltalake.transaction.create_table_with_add_actions(
                self.address,
                schema,
                added,
                partition_by=changes.partitions,
                description=f"{_DESCRIPTION}{self.output.root}",
                storage_options=self.options,
                commit_properties=properties,
            )
            return Published(0, len(added))
        now = int(time.time() * 1000)
        removed = [
            deltalake.transaction.RemoveAction(each["path"], True, now, each["size_bytes"], each["partition"])
            for each in changes.removed
        ]
        found.create_write_transaction(
            [*added, *removed], "append", schema, partition_by=changes.partitions, commit_properties=properties
        )
        found.update_incremental()
        return Published(found.version(), len(added), len(removed))

    def _keys_of_output(self) -> set[str]:
        folder = self.output.root / PREDICTIONS
        return {_key(folder.relative(place.path)) for place in folder.files()}


class _Changes:
    """What a commit adds and removes, as `_files_in` has files. schema: the table's, partitions last; None at first."""

    def __init__(self, partitions: list[str], schema: pa.Schema | None) -> None:
        self.partitions = partitions
        self.schema = schema
        self.added: list[dict[str, Any]] = []
        self.removed: list[dict[str, Any]] = []

    def settle(self, schema: pa.Schema, name: str) -> None:
        """Take the columns of a file for those of the table, or see that they are. Raises OutputError."""
        if self.schema is None:
            self.schema = pa.schema([*schema, *(pa.field(key, pa.string()) for key in self.partitions)])
            return
        has = [(field.name, field.type) for field in self.schema if field.name not in self.partitions]
        if has != [(field.name, field.type) for field in schema]:
            shown = ", ".join(f"{key} {kind}" for key, kind in has)
            raise OutputError(
                f"The Delta table has the columns {shown}, and {name} has others: "
                f"{', '.join(f'{field.name} {field.type}' for field in schema)}. Publish to another table."
            )


def _tables(file: pq.ParquetFile, schema: pa.Schema, name: str) -> Iterator[pa.Table]:
    for batch in file.iter_batches(_ROWS_AT_ONCE):
        table = pa.Table.from_batches([batch])
        yield table.append_column(FILE, pa.repeat(name, len(table))).cast(schema)


def _check_names(names: Sequence[str]) -> None:
    """Raises OutputError if columns of these names can't be in a Delta table beside FILE."""
    for name in [*names, FILE]:
        if _NO_COLUMN & set(name) or names.count(name) > (name != FILE):
            why = "is no name for it" if _NO_COLUMN & set(name) else "is there already"
            raise OutputError(
                f"A Delta table needs a column of each name once, and {name!r} {why}. Leave it out of keep."
            )


def _delta_schema(schema: pa.Schema, partitions: Collection[str]) -> pa.Schema:
    """The columns of a file as a Delta table can have them. Raises OutputError if one can't be in any."""
    _check_names([*schema.names, *partitions])
    fields = []
    for field in schema:
        try:
            fields.append(_imported_field(pa.field(field.name, _delta_type(field.type), metadata=_comment(field))))
        except Exception as error:  # whatever delta-rs says of a type
            raise OutputError(
                f"A Delta table has no column of type {field.type}, such as {field.name}. Leave it out of keep."
            ) from error
    return pa.schema(
        [*fields, pa.field(FILE, pa.string(), metadata={COMMENT: "the input file's name, below the source"})]
    )


def _imported_field(field: pa.Field) -> pa.Field:
    """The field, if delta-rs can have it."""
    _imported().Field.from_arrow(field)
    return field


def _comment(field: pa.Field) -> dict[bytes, bytes] | None:
    comment = (field.metadata or {}).get(COMMENT.encode())
    return {COMMENT.encode(): comment} if comment else None


def _delta_type(kind: pa.DataType) -> pa.DataType:
    """The nearest type that Delta has: lists without a size, signed integers, microseconds."""
    if isinstance(kind, pa.BaseExtensionType):
        return _delta_type(kind.storage_type)
    if pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list(kind):
        return pa.list_(pa.field("element", _delta_type(kind.value_type)))
    if pa.types.is_dictionary(kind):
        return _delta_type(kind.value_type)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_float16(kind):
        return pa.float32()
    return _WIDER.get(kind, kind)


def _files_in(found: "DeltaTable | None") -> dict[str, list[dict[str, Any]]]:
    """The files of a table by the output's file that they are made of, as delta-rs has them."""
    files: dict[str, list[dict[str, Any]]] = {}
    for each in pa.table(found.get_add_actions()).to_pylist() if found is not None else ():
        each["path"] = unquote(each["path"])  # as the log has it, but not as actions take it
        each.setdefault("partition", {})
        files.setdefault(_key_in(each["path"]), []).append(each)
    return files


def _key(name: str) -> str:
    """Which predictions file of the output, short and plain whatever it is called."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _key_in(path: str) -> str:
    return path.rpartition("/")[2].partition("-")[0]


def _partition_columns(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(key for name in names for key in partition_values(name)))


def _is_within(file: dict[str, Any], plan: OutputPlan) -> bool:
    """Whether an output's file that is gone was of this plan; one of a plan that names files is of none."""
    source = plan.source
    if source.is_pattern or any(each.relative == source.scope for each in source.files):
        return False
    return bool(partition_values(f"{source.scope}/").items() <= file["partition"].items())


def _quoted(value: str | None) -> str:
    return "__HIVE_DEFAULT_PARTITION__" if value is None else quote(value, safe="")


def _imported() -> Any:
    try:
        import deltalake
        import deltalake.exceptions
        import deltalake.transaction
    except ModuleNotFoundError:
        raise OutputError(
            "deltalake is not installed; the extra `delta` has it: pip install 'attnlstm[delta]'"
        ) from None
    return deltalake


def published_in_words(published: Published, place: str) -> str:
    """For notes and messages."""
    shown = without_credentials(place)
    if published.version < 0:
        return f"nothing to publish to {shown}"
    if not (published.num_added or published.num_removed):
        return f"{shown} has it already, as version {published.version}"
    counts = f"files added {published.num_added}, removed {published.num_removed}"
    return f"published to {shown} as version {published.version}: {counts}"
