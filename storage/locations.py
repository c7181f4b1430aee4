"""Where things lie: a path on a local disk or in an object store, and writing there all or nothing.

Owns the mapping from what users type (a path or a URI) to a pyarrow filesystem, and the one way in which
this project puts a file in place. Knows nothing about what is inside the files.
"""

import ctypes
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from storage.errors import SourceError

# Unfinished files are dotted, so readers that glob or follow Hive's rules pass over them.
TEMPORARY_SUFFIX = ".tmp"
# Of the target's name: a name may have 255 bytes, so that a target with a long one has a temporary name as well.
_TEMPORARY_NAME_BYTES = 200
# Arrow cuts it into parts of 10 MB, which go up side by side.
_UPLOAD_CHUNK_BYTES = 32 << 20

# A regular expression of the URIs that hold credentials, in the dialect that JSON schemas share with Python. No slash
# and no @ comes first in brackets: rich, with which Prefect prints it, would take them for markup.
CREDENTIALS_PATTERN = "|".join(
    (
        r"(?:s3|gs|gcs)://(?!anonymous@)[^/?]*[:@]",  # a bucket's name has neither
        r"[^:/?]+://[^/?]*:[^/?]*@",  # a password
        r"[^:/?]+://[^/?@]*:(?![0-9]*(?:[?/]|$))",  # no port: a password with a slash that is not escaped
        r"[^:/?]+://[^?]*[?](?:.*&)?[^=&]*(?:[Ss]ecret|[Pp]assword|[Tt]oken|[Kk]ey|[Ss]ig)[^=&]*=",
    )
)
_CREDENTIALS = re.compile(CREDENTIALS_PATTERN)


@dataclass(frozen=True)
class Location:
    """A file or folder. `path` is absolute within `filesystem`, with `/` and no trailing slash."""

    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def parse(cls, place: str | os.PathLike[str]) -> Self:
        """From a local path (`~` is expanded, relative to the working directory) or a URI of `pyarrow.fs`.

        In a URI `%20` and the like stand for a character. One that no URI has, such as a space or `#`, is itself.
        Raises SourceError for a scheme that pyarrow does not know, or a path that is not UTF-8.
        """
        text = os.fspath(place)
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(text).decode(errors="backslashreplace")
            raise SourceError(f"The path {shown} is not UTF-8, so it can't be opened. Rename it.") from None
        if "://" not in text:
            return cls(pafs.LocalFileSystem(), Path(text).expanduser().absolute().as_posix())
        uri = _valid_uri(text)
        try:
            filesystem, path = pafs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            scheme = text.split("://")[0]
            reason = str(error).replace(uri, without_credentials(text))
            raise SourceError(
                f"{scheme}:// is not a location that can be opened here ({reason}). "
                "Use a path, or a URI that pyarrow.fs understands (file://, s3://, gs://, abfs://, hdfs://)."
            ) from error
        return cls(filesystem, path.rstrip("/"))

    def __truediv__(self, relative: str) -> "Location":
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{relative}" if relative else self.path)

    def __str__(self) -> str:
        """For messages and records: never holds credentials, which a URI may."""
        return self.path if self.is_local else f"{self.filesystem.type_name}://{self.path}"

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def info(self) -> pafs.FileInfo:
        return self.filesystem.get_file_info(self.path)

    def is_file(self) -> bool:
        return bool(self.info().type == pafs.FileType.File)

    def is_folder(self) -> bool:
        return bool(self.info().type == pafs.FileType.Directory)

    def walk(self) -> list[pafs.FileInfo]:
        """Every file and folder below, in order of path; nothing if there is no such folder."""
        selector = pafs.FileSelector(self.path, recursive=True, allow_not_found=True)
        return sorted(self.filesystem.get_file_info(selector), key=lambda info: info.path)

    def files(self, ending: str = "") -> list["Location"]:
        """Every file below whose name ends so, in order of path; nothing if there is no such folder."""
        found = (info.path for info in self.walk() if info.is_file and info.path.endswith(ending))
        return [Location(self.filesystem, path) for path in found]

    def relative(self, path: str) -> str:
        """The part of `path` (as `walk` gives it) below this folder."""
        return path[len(self.path) :].lstrip("/")

    def read_bytes(self) -> bytes:
        with self.filesystem.open_input_stream(self.path) as stream:
            return bytes(stream.read())

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes) -> None:
        """Put `content` here, whole or not at all."""
        with self.replacing() as temporary:
            temporary.write_bytes(content)

    def delete(self) -> None:
        """Remove this file; one that is already gone is fine."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path)

    @contextmanager
    def replacing(self) -> Iterator[Path]:
        """Yields a local path to write to; when the block ends well its file appears here, at once and whole.

        On a local disk the file is written beside its target, flushed to the disk and renamed. For an object
        store it is written to a local temporary folder and put with one upload, which the store makes visible
        only when complete. If the block raises, nothing appears and what was there before stays. The parts of an
        upload that was broken off are not visible; a lifecycle rule of the bucket can remove them.
        """
        if self.is_local:
            target = Path(self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            name = target.name.encode()[:_TEMPORARY_NAME_BYTES].decode(errors="ignore")
            temporary = target.parent / f".{name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
            try:
                yield temporary
                _flush(temporary)
                os.replace(temporary, target)
                _flush(target.parent)
            finally:
                temporary.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="attnlstm-") as folder:
            temporary = Path(folder) / "content"
            yield temporary
            self._upload(temporary)

    def _upload(self, local: Path) -> None:
        # In a thread, where no Ctrl-C arrives: it would drop the stream, and so complete the object (see `_put`).
        with ThreadPoolExecutor(1, "upload") as pool:
            pool.submit(_put, local, self).result()


def _put(local: Path, place: Location) -> None:
    """Upload a file, whole or not at all.

    `pyarrow.fs.copy_files` is no way to do it: in pyarrow 26 it takes no notice of an upload that fails at its end.
    """
    upload = place.filesystem.open_output_stream(place.path)
    try:
        with local.open("rb") as content:
            while chunk := content.read(_UPLOAD_CHUNK_BYTES):
                upload.write(chunk)
                upload.flush()  # Arrow queues parts without a limit, each with a copy of its bytes
        upload.close()
    except BaseException:
        # Arrow's destructor completes the object with the parts that it has, and nothing within reach aborts an upload.
        # So the stream is never destroyed.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(upload))
        raise


def below(place: str, relative: str) -> str:
    """What lies below a path or URI as typed. In a URI, what is special in a name is escaped, and its query is kept."""
    address, query = query_of(place)
    name = quote(relative, safe="/=") if "://" in place else relative
    return f"{address.rstrip('/')}/{name}{query}"


def query_of(place: str) -> tuple[str, str]:
    """A place as typed without its query, and the query with its question mark; a path has none."""
    address, mark, query = place.partition("?") if "://" in place else (place, "", "")
    return address, mark + query


def in_store_of(place: str, other: str) -> str:
    """A recorded place as it would be typed beside `other`: by the endpoint that a URI of its kind names, if it does.

    What is recorded names neither that nor who asks for it, and without it another store would be asked.
    """
    address, query = query_of(other)
    scheme, _, rest = address.partition("://")
    if "endpoint_override=" not in query or not place.startswith(f"{scheme}://"):
        return place
    user, at, _ = rest.partition("/")[0].rpartition("@")
    return f"{scheme}://{user}{at}{place.partition('://')[2]}{query}"


def as_uri(place: str) -> str:
    """For links: `place` is what `str` gives of a Location, or below it."""
    return quote(place, safe=":/") if "://" in place else Path(place).as_uri()


def without_credentials(place: str) -> str:
    """A path or URI as typed, for names and messages: of a URI, what comes before `@` and after `?` is left out.

    Of one with credentials, of which it can't be told where they end, nothing but the scheme is shown.
    """
    if "://" not in place:
        return place
    scheme, _, rest = place.partition("://")
    address, _, query = rest.partition("?")
    if _CREDENTIALS.match(place):
        shown = f"{scheme}://{address.rpartition('@')[2]}"
        return f"{scheme}://..." if "@" in query or _CREDENTIALS.match(shown) else shown
    authority, slash, path = address.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def holds_credentials(place: str) -> bool:
    """Whether what was typed is a URI with a password, a key or a token in it, also behind `delta:`."""
    return _CREDENTIALS.match(place.removeprefix("delta:")) is not None


def address_and_options(output: str) -> tuple[str, dict[str, str] | None]:
    """An address and storage options as Polars and delta-rs have them, of a URI as `pyarrow.fs` has it.

    All take credentials from the environment; what an S3 URI itself says is said in other words to these.
    """
    if not output.startswith("s3://"):
        return Location.parse(output).path if _is_local(output) else output, None
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
    return unquote(without_credentials(output)), options or None


def _is_local(output: str) -> bool:
    return "://" not in output or output.startswith("file://")


def _valid_uri(uri: str) -> str:
    """The URI with what no URI may have escaped in its path, so that it is taken as it was typed."""
    address, query = query_of(uri)
    address = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", address)
    return quote(address, safe="%:/@!$&'()*+,;=~") + query


def _flush(path: Path) -> None:
    """Ask the operating system to put a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
