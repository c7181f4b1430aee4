"""Storage on S3, against moto's server: places, whole objects or none, and faults on the way there.

Faults are made by a proxy on loopback, between Arrow and the server.
"""

import errno
import gc
import io
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from storage.errors import FileError, OutputError, RegistryError, SourceError
from storage.input.columns import Columns
from storage.input.partitions import PartitionRange
from storage.input.reading import read_shard
from storage.input.shards import Shard, ShardLimits, plan_shards
from storage.input.sources import Source, SourceFile, find_source, refuse_nested
from storage.locations import Location
from storage.output.frames import open_attention, open_predictions
from storage.output.layout import AttentionSaving, Output, OutputSettings
from storage.registry.cards import Card
from storage.registry.checkpoints import Registry

TWO_PARTS = 11 << 20  # more than the 10 MB after which Arrow begins another part of an upload
UPLOAD_STEPS = ("?uploads", "partNumber=2", "?uploadId=")  # begins, goes on, completes
WRITE = f"place.write_bytes(bytes({TWO_PARTS}))"


class Proxy:
    """Passes connections on to the server. `fault(head)`, of a request, says what to do to it, or None.

    "reset": the connection is reset; "cut": so it is after the first kilobytes of the answer; "503": this is the
    answer.
    """

    def __init__(self, server: str) -> None:
        host, _, port = server.partition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.fault: Callable[[str], str | None] = lambda request: None
        self.num_faults = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server, suppress(OSError):
            answer_bytes = [1 << 62]
            threading.Thread(target=self._answer, args=(server, client, answer_bytes), daemon=True).start()
            while data := client.recv(1 << 16):
                head = data.partition(b"\r\n\r\n")[0].decode(errors="replace")
                fault = self.fault(head) if "HTTP/1.1\r\n" in head else None
                self.num_faults += fault is not None
                if fault == "cut":
                    answer_bytes[0] = 4096
                elif fault == "503":
                    client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    return
                elif fault == "reset":
                    _reset(client)
                    return
                server.sendall(data)

    @staticmethod
    def _answer(server: socket.socket, client: socket.socket, answer_bytes: list[int]) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if len(data) > answer_bytes[0]:
                    client.sendall(data[: answer_bytes[0]])
                    _reset(client)
                    return
                client.sendall(data)


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(s3_server: str) -> Iterator[Proxy]:
    proxy = Proxy(s3_server)
    yield proxy
    proxy.close()


@pytest.fixture
def through(s3: Callable[[str], str], proxy: Proxy) -> Callable[[str], Location]:
    """through(path): the place in the test's bucket, by way of the proxy and with a second try only."""
    filesystem = pafs.S3FileSystem(
        endpoint_override=proxy.address,
        scheme="http",
        region="us-east-1",
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=2),
    )
    bucket = Location.parse(s3("")).path
    return lambda path: Location(filesystem, f"{bucket}/{path}")


def parquet(num_rows: int = 2000, *, row_group_size: int = 500) -> bytes:
    """Rows of 100 random bytes, so that pages are as large as the rows."""
    cells = np.random.default_rng(num_rows).integers(0, 256, (num_rows, 100), dtype=np.uint8)
    sink = io.BytesIO()
    table = pa.table({"tokens": pa.array([cell.tobytes() for cell in cells])})
    pq.write_table(table, sink, row_group_size=row_group_size, use_dictionary=False)
    return sink.getvalue()


def plan(root: Location) -> Shard:
    """The only shard of the only file there."""
    (info,) = root.walk()
    source = Source(root, "", (SourceFile(root.relative(info.path), info.size),))
    (shard,) = plan_shards(source, OutputSettings().columns, OutputSettings().limits).shards
    return shard


# --- places


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("data", ["date=2026-11-01/a.parquet", "date=2026-11-01/b.parq", "date=2026-11-02/a b.parquet"]),
        ("data/date=2026-11-02", ["date=2026-11-02/a b.parquet"]),
        ("data/date=2026-11-01/a.parquet", ["date=2026-11-01/a.parquet"]),
        ("data/*/a*.parquet", ["date=2026-11-01/a.parquet", "date=2026-11-02/a b.parquet"]),
        ("data/*/a%20b.*", ["date=2026-11-02/a b.parquet"]),
    ],
)
def test_source_is_a_folder_a_slice_a_file_or_a_glob(path: str, names: list[str], s3: Callable[[str], str]) -> None:
    data = Location.parse(s3("data"))
    for name in ("date=2026-11-01/a.parquet", "date=2026-11-01/b.parq", "date=2026-11-02/a b.parquet", "_x.parquet"):
        (data / name).write_bytes(b"abc")
    found = find_source(s3(path))
    assert [file.relative for file in found.files] == names
    assert {file.num_bytes for file in found.files} == {3}
    assert found.root == data


def test_any_name_in_a_bucket_is_found_by_the_uri_of_its_folder(s3: Callable[[str], str]) -> None:
    root = Location.parse(s3("data"))
    for value in ("Brand#21", "Brand", "a b", "a%3Ab", "a+b", "a?b", "é"):
        (root / f"h={value}/a.parquet").write_bytes(parquet(10, row_group_size=10))
    (root / "h=1/_SUCCESS").write_bytes(b"")
    (root / "out/_dataset.json").write_bytes(b'{"format": "attnlstm"}')
    (root / "out/predictions/h=9/a.parquet").write_bytes(b"")
    (root / "h=1/_temporary/b.parquet").write_bytes(b"")
    partitions = PartitionRange("h").find(s3("data"))
    assert {each.value for each in partitions} == {"Brand#21", "Brand", "a b", "a:b", "a+b", "a?b", "é"}
    for each in partitions:
        found = find_source(each.place)
        assert [file.relative for file in found.files] == [f"{each.name}/a.parquet"]
        assert not plan_shards(found, Columns(), ShardLimits()).unreadable
    passed_over = find_source(s3("data")).passed_over
    assert [each.name for each in passed_over] == ["h=1/_temporary", "out"]
    with pytest.raises(OutputError, match="lies in the source"):
        refuse_nested(root, Location.parse(s3("data/out")))
    (root / "t/_delta_log/0.json").write_bytes(b"{}")
    with pytest.raises(SourceError, match="data/t is a table of Delta"):
        find_source(s3("data"))


def test_key_that_is_no_path_fails_by_its_name_and_is_not_taken_for_another(s3: Callable[[str], str]) -> None:
    import boto3

    root = Location.parse(s3("data"))
    (root / "a.parquet").write_bytes(parquet(10, row_group_size=10))
    endpoint = re.search("endpoint_override=([^&]*)", s3(""))
    assert endpoint
    client = boto3.client("s3", endpoint_url=f"http://{endpoint[1]}", region_name="us-east-1")
    for key in ("data//a.parquet", "data/b//a.parquet", "data/b/", "data/b/../c.parquet", "data/./d.parquet"):
        client.put_object(Bucket=root.path.partition("/")[0], Key=key, Body=b"")
    plan = plan_shards(find_source(s3("data")), Columns(), ShardLimits())
    assert [shard.file for shard in plan.shards] == ["a.parquet"]
    assert [each.file for each in plan.unreadable] == ["./d.parquet", "/a.parquet", "b/../c.parquet", "b//a.parquet"]
    assert [each.reason for each in plan.unreadable] == [
        f"its key has {odd} in it, so no path leads to it; give the object another key"
        for odd in ("/./", "//", "/../", "//")
    ]


def test_folder_is_there_as_long_as_something_is_in_it(s3: Callable[[str], str]) -> None:
    root = Location.parse(s3("root"))
    assert not root.is_folder()
    assert root.walk() == []
    (root / "a/b").write_bytes(b"x")
    assert root.is_folder()
    assert [info.path for info in root.walk()] == [f"{root.path}/a", f"{root.path}/a/b"]
    assert not (root / "a").is_file()
    with pytest.raises(SourceError, match=rf"^The source {root}/c does not exist\."):
        find_source(s3("root/c"))


def test_credentials_in_a_uri_are_used_and_never_shown(s3: Callable[[str], str]) -> None:
    uri = s3("data").replace("s3://", "s3://KEY:SECR%2FET@")
    (Location.parse(uri) / "part of it").write_bytes(b"x")
    with pytest.raises(SourceError) as nothing:
        find_source(uri)
    with pytest.raises(SourceError) as misspelt:
        Location.parse(uri.replace("data", "da ta") + "&no_such_option=1")
    for message in (str(nothing.value), str(misspelt.value), str(Location.parse(uri))):
        assert "KEY" not in message
        assert "SECR" not in message


# --- whole objects or none


def test_upload_that_fails_halfway_leaves_the_old_object(
    through: Callable[[str], Location], s3: Callable[[str], str], proxy: Proxy
) -> None:
    direct = Location.parse(s3("file"))
    direct.write_bytes(b"old")
    content = os.urandom(TWO_PARTS)
    for step in UPLOAD_STEPS:
        proxy.fault = lambda request, step=step: "503" if step in request.partition("\r\n")[0] else None
        proxy.num_faults = 0
        with pytest.raises(OSError, match=r"AWS Error .* 503"):
            through("file").write_bytes(content)
        assert proxy.num_faults
        gc.collect()
        assert direct.read_bytes() == b"old"
    proxy.fault = lambda request: None
    through("file").write_bytes(content)
    assert direct.read_bytes() == content


def test_upload_of_a_file_that_can_not_be_read_leaves_the_old_object(
    s3: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = Location.parse(s3("file"))
    direct.write_bytes(b"old")
    chunks = iter([bytes(TWO_PARTS), bytes(TWO_PARTS)])

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if chunk := next(chunks, None):
                return chunk
            raise OSError(errno.EIO, "the disk is failing")

    monkeypatch.setattr(Path, "open", lambda self, mode: Failing())
    with pytest.raises(OSError, match="the disk is failing"), direct.replacing() as temporary:
        temporary.touch()
    gc.collect()
    assert direct.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGKILL, "partNumber=2"), *((signal.SIGINT, step) for step in UPLOAD_STEPS)]
)
def test_killed_or_interrupted_upload_leaves_the_old_object_or_the_whole_new_one(
    number: signal.Signals, step: str, s3: Callable[[str], str], proxy: Proxy, s3_server: str
) -> None:
    """The signal arrives while a request is on its way."""
    direct = Location.parse(s3("file"))
    direct.write_bytes(b"old")
    code = f"import sys, pyarrow.fs, storage.locations\nplace = storage.locations.Location.parse(sys.argv[1])\n{WRITE}"
    command = [sys.executable, "-c", code, s3("file").replace(s3_server, proxy.address)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:

        def send(request: str) -> None:
            if step in request:
                process.send_signal(number)
                time.sleep(0.2)  # so that it is taken notice of before the answer

        proxy.fault = send
        printed = process.communicate(timeout=60)[1]
    assert (b"KeyboardInterrupt" in printed) == (number == signal.SIGINT)
    assert direct.read_bytes() in ((b"old",) if number == signal.SIGKILL else (b"old", bytes(TWO_PARTS)))


# --- faults while reading


@pytest.mark.parametrize("kind", ["reset", "cut", "503"])
def test_fault_of_the_network_is_no_damage(kind: str, through: Callable[[str], Location], proxy: Proxy) -> None:
    root = through("data")
    content = parquet()
    (root / "a.parquet").write_bytes(content)
    shard = plan(root)
    tables = read_shard(root, shard, ["tokens"], chunk_rows=1)
    next(tables)
    to_end = re.compile(rf"bytes=\d+-{len(content) - 1}\b")  # as footers are read, which goes well
    proxy.fault = lambda request: kind if request.startswith("GET") and not to_end.search(request) else None
    with pytest.raises(OSError, match="AWS Error") as raised:
        list(tables)
    assert raised.value.errno is None
    proxy.fault = lambda request: None
    assert sum(table.num_rows for table in read_shard(root, shard, ["tokens"])) == 2000


def test_fault_that_passes_is_tried_again(through: Callable[[str], Location], proxy: Proxy) -> None:
    root = through("data")
    (root / "a.parquet").write_bytes(parquet())
    shard = plan(root)
    faults = iter(["503", None, "reset", None, "cut"])
    proxy.fault = lambda request: next(faults, None)
    assert sum(table.num_rows for table in read_shard(root, shard, ["tokens"])) == 2000
    assert proxy.num_faults == 3


def test_damage_is_a_file_error(s3: Callable[[str], str]) -> None:
    root = Location.parse(s3("data"))
    content = parquet()
    (root / "a.parquet").write_bytes(content[:5000] + bytes(5000) + content[10_000:])
    with pytest.raises(FileError, match=r"^damaged: "):
        list(read_shard(root, plan(root), ["tokens"]))


def test_object_that_vanishes_or_changes_while_it_is_read_is_told(s3: Callable[[str], str]) -> None:
    root = Location.parse(s3("data"))
    place = root / "a.parquet"
    place.write_bytes(parquet())
    tables = read_shard(root, plan(root), ["tokens"], chunk_rows=1)
    next(tables)
    place.delete()
    with pytest.raises(FileError, match=r"^vanished while the run was on$"):
        list(tables)
    place.write_bytes(parquet())
    tables = read_shard(root, plan(root), ["tokens"], chunk_rows=1)
    next(tables)
    cells = pq.read_table(io.BytesIO(parquet()))["tokens"].to_pylist()
    sink = io.BytesIO()
    table = pa.table({"tokens": cells[::-1]})  # other rows, and pages that lie where the old ones did
    pq.write_table(table, sink, row_group_size=500, use_dictionary=False)
    place.write_bytes(sink.getvalue())
    with pytest.raises(FileError, match=r"^changed while the run was on"):
        list(tables)


# --- output and registry


@pytest.mark.parametrize("saving", ["full", "top:2"])
def test_output_reads_back_with_polars(
    saving: str, s3: Callable[[str], str], put: Callable[..., Path], data: Path, score: Callable[..., tuple[Shard, ...]]
) -> None:
    put("date=2026-11-01/a.parquet", [b"abc", None], id=[1, 2])
    put("date=2026-11-02/b.parquet", [b"de"], id=[3])
    score(data, Output(Location.parse(s3("out")), OutputSettings(attention=AttentionSaving.parse(saving))))
    local = data.parent / "out"
    score(data, Output(Location.parse(local), OutputSettings(attention=AttentionSaving.parse(saving))))
    for read in (open_predictions, open_attention):
        assert read(s3("out")).collect().equals(read(str(local)).collect())


def test_version_that_was_not_published_to_its_end_is_incomplete(s3: Callable[[str], str]) -> None:
    registry = Registry.open(s3("registry"))
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    whole = registry.publish(files, Card(), "# One\n")
    registry.promote(whole.version, "the first")
    part = registry.root / "checkpoints/20261101T000000Z-00000000"
    for name, content in files.items():
        (part / name).write_bytes(content)
    assert registry.versions() == [whole.version]
    for use in (registry.load, lambda version: registry.promote(version, "a mistake")):
        with pytest.raises(RegistryError, match=rf"^The checkpoint {part} is incomplete: it has no card\.json"):
            use(part.name)
    assert registry.load("champion") == whole
