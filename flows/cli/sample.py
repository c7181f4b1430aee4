"""Sample real bytes: fixed-size fragments of the files on this machine, labelled by file type.

Owns which files count as which type, which fragments are taken, and how they are spread over dates. Every
choice follows from hashes of relative paths and contents, so the same files give the same Parquet files, byte
for byte. Knows nothing about how the sample is split, learned from or scored.
"""

import os
import stat
import sysconfig
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import StorageError

MIN_TYPES = 8
"""Fewer file types make no task worth learning."""

MIN_FILES_PER_TYPE = 64
"""Distinct files. A split by file holds out a tenth of them, and fewer than six say little about a type."""

ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 64 * 2**20
"""A row group ends at either, and is all of the sample that is in memory at once."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("tokens", pa.binary(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
    ]
)

Indices = npt.NDArray[np.int64]


class SampleError(StorageError, ValueError):
    """A sample can't be taken from these sources, or not be written to this place."""


@dataclass(frozen=True)
class FileType:
    """A label, and the files that carry it.

    suffixes: ends of file names, with the dot. names: whole names, for formats that have no suffix.
    magic: the file has one of these at `magic_offset`; without any, it is text and its head has no NUL.
    """

    label: str
    suffixes: tuple[str, ...]
    names: tuple[str, ...] = ()
    magic: tuple[bytes, ...] = ()
    magic_offset: int = 0

    def accepts(self, head: bytes) -> bool:
        """Whether a file that begins with these bytes is what its name says."""
        if not self.magic:
            return b"\0" not in head
        return any(head.startswith(magic, self.magic_offset) for magic in self.magic)


# Chosen for bytes whose order tells more than their frequency: Python, its stubs and the text in both share an
# alphabet, as C and JavaScript do, and bytecode holds docstrings. Cython is left out: most of it reads as Python.
FILE_TYPES = (
    FileType("c-header", (".h", ".hh", ".hpp", ".cuh")),
    FileType("csv", (".csv",), names=("RECORD",)),  # RECORD lists the files of an installed package
    FileType("html", (".html", ".htm")),
    FileType("javascript", (".js", ".mjs")),
    FileType("json", (".json",)),
    FileType(
        "native-library",
        (".so", ".dylib", ".dll", ".pyd"),
        magic=(b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"MZ"),
    ),
    FileType("png", (".png",), magic=(b"\x89PNG\r\n\x1a\n",)),
    FileType("python", (".py",)),
    FileType("python-bytecode", (".pyc",), magic=(b"\r\n",), magic_offset=2),
    FileType("python-stub", (".pyi",)),
    FileType("text", (".txt", ".md", ".rst"), names=("METADATA",)),  # METADATA is a package's read-me
    FileType("timezone", ("",), magic=(b"TZif",)),
)
HEAD_BYTES = 512


@dataclass(frozen=True)
class SampleSummary:
    """What was written.

    files: one Parquet file a day, in order of date. files_per_label: distinct files that fragments came from.
    left_out: file types with fewer than MIN_FILES_PER_TYPE distinct files, and how many they had.
    """

    root: Path
    files: tuple[Path, ...]
    num_rows: int
    fragment_bytes: int
    rows_per_label: dict[str, int]
    files_per_label: dict[str, int]
    left_out: dict[str, int]


@dataclass(frozen=True)
class _SourceFile:
    """name: the source folder's name and the path in it. key: 64-bit hash of the name. group: of the content."""

    name: str
    path: str
    num_bytes: int
    key: int
    group: str = ""


@dataclass(frozen=True)
class _Plan:
    """Every row of the sample: indices into `files` and `labels`, and where in the file the fragment begins."""

    files: list[_SourceFile]
    labels: list[str]
    file: Indices
    label: Indices
    offset: Indices


def write_sample(
    root: str | os.PathLike[str],
    *,
    rows: int = 20_000,
    fragment_bytes: int = 512,
    days: int = 7,
    start: date = date(2026, 1, 1),
    sources: Sequence[str | os.PathLike[str]] | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> SampleSummary:
    """Write `root/date=YYYY-MM-DD/part-0.parquet` with fragments of the files under `sources`.

    rows: fragments in all, as many of one file type as of another, spread evenly over the days.
    fragment_bytes: length of every fragment; smaller files are not used.
    days: number of dates, from `start` on.
    sources: folders; by default the packages and the standard library of the running Python environment.
        Symbolic links, `root` itself, packages of other environments and unreadable files are passed over.
    seed: another seed draws other fragments.
    on_progress: called with (rows written, rows in all).

    Columns: `id` (string, unique: the file and the fragment's offset in it), `tokens` (binary), `label`
    (string, the file type), `group` (string, a hash of the file's content: fragments of one file, or of its
    copies, that a split must keep together).

    A file is written beside its place and renamed into it, and the same call again writes the same bytes.
    Raises SampleError if fewer than MIN_TYPES types have MIN_FILES_PER_TYPE distinct files, if a type has too
    few distinct fragments, or if `root` holds Parquet files of something else; ValueError on bad arguments.
    """
    _check_arguments(rows, fragment_bytes, days)
    root = Path(root)
    targets = [root / f"date={start + timedelta(days=day)}" / "part-0.parquet" for day in range(days)]
    _check_root(root, targets)

    folders = _named_folders(_environment_folders() if sources is None else sources)
    candidates = _find_candidates(folders, fragment_bytes, root.resolve(), seed)
    most_files = max(MIN_FILES_PER_TYPE, -(-rows // MIN_TYPES))
    found = {kind.label: _read_distinct(kind, candidates[kind.label], most_files) for kind in FILE_TYPES}
    used = {label: files for label, files in found.items() if len(files) >= MIN_FILES_PER_TYPE}
    left_out = {label: len(files) for label, files in found.items() if label not in used}
    if len(used) < MIN_TYPES:
        raise SampleError(
            f"Expected {MIN_TYPES} file types with {MIN_FILES_PER_TYPE} distinct files of {fragment_bytes} bytes "
            f"or more each; found {len(used)} ({_listed(used)}) in {_listed(folder for _, folder in folders)}. "
            f"Too few: {_listed(f'{label} {count}' for label, count in left_out.items())}. "
            "Ask for shorter fragments, or sample an environment with more packages."
        )
    if rows < len(used):
        raise ValueError(f"rows must be at least 1 for each of {len(used)} file types, not {rows}")
    plan = _plan_rows(used, rows, fragment_bytes)

    written = 0
    for target, rows_of_day in zip(targets, np.array_split(np.arange(rows), days), strict=True):
        for num_written in _write_file(target, plan, rows_of_day, fragment_bytes):
            written += num_written
            if on_progress:
                on_progress(written, rows)
    return SampleSummary(
        root=root,
        files=tuple(targets),
        num_rows=rows,
        fragment_bytes=fragment_bytes,
        rows_per_label=dict(zip(plan.labels, np.bincount(plan.label).tolist(), strict=True)),
        files_per_label={
            label: len(np.unique(plan.file[plan.label == index])) for index, label in enumerate(plan.labels)
        },
        left_out=left_out,
    )


def _check_arguments(rows: int, fragment_bytes: int, days: int) -> None:
    if fragment_bytes < 1:
        raise ValueError(f"fragment_bytes must be at least 1, not {fragment_bytes}")
    if days < 1:
        raise ValueError(f"days must be at least 1, not {days}")
    if rows < max(days, MIN_TYPES):
        raise ValueError(f"rows must be at least 1 for each of {MIN_TYPES} file types and {days} days, not {rows}")


def _check_root(root: Path, targets: Collection[Path]) -> None:
    if root.exists() and not root.is_dir():
        raise SampleError(f"{root} is a file; the sample needs a folder.")
    others = sorted(set(root.rglob("*.parquet")).difference(targets))
    if others:
        raise SampleError(
            f"{root} holds Parquet files that this sample would not replace, {len(others)} of them; the first is "
            f"{others[0]}. Readers would mix the two: write to another folder, or delete this one."
        )


def _listed(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items) or "none"


def _environment_folders() -> list[str]:
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(paths[name] for name in ("purelib", "platlib", "stdlib")))


def _named_folders(sources: Sequence[str | os.PathLike[str]]) -> list[tuple[str, Path]]:
    """Each folder with a name of its own that does not depend on where the folder lies."""
    folders: list[tuple[str, Path]] = []
    for source in sources:
        path = Path(source).resolve()
        if not path.is_dir():
            raise SampleError(f"{source} is not a folder, so there are no files in it to sample.")
        num_namesakes = sum(other.name == path.name for _, other in folders)
        folders.append((f"{path.name}-{num_namesakes + 1}" if num_namesakes else path.name, path))
    return folders


def _find_candidates(
    folders: Sequence[tuple[str, Path]], fragment_bytes: int, output: Path, seed: int
) -> dict[str, list[_SourceFile]]:
    """Files by label, judged by name and size alone, in the order in which they are to be used.

    The order takes one file of each folder in turn, so that thousands of generated headers in one folder do
    not crowd out the others. Within a folder, and within a turn, hashes of names decide.
    """
    kinds_by_suffix = {suffix: kind for kind in FILE_TYPES for suffix in kind.suffixes}
    kinds_by_name = {name: kind for kind in FILE_TYPES for name in kind.names}
    closed = {output, *(path for _, path in folders)}
    by_folder: dict[tuple[str, str], list[_SourceFile]] = defaultdict(list)
    for root_name, root in folders:
        for folder, file_name in _walk(root, closed):
            kind = kinds_by_name.get(file_name) or kinds_by_suffix.get(_suffix(file_name))
            if kind is None or _is_near_copy(file_name):
                continue
            path = os.path.join(folder, file_name)
            try:
                status = os.lstat(path)
            except OSError:  # gone since it was listed
                continue
            if not stat.S_ISREG(status.st_mode) or status.st_size < fragment_bytes:
                continue
            name = root_name + path.removeprefix(str(root)).replace(os.sep, "/")
            key = blake2b(os.fsencode(f"{seed}:{name}"), digest_size=8).digest()
            file = _SourceFile(name, path, status.st_size, int.from_bytes(key, "little"))
            by_folder[kind.label, folder].append(file)

    by_label: dict[str, list[tuple[int, int, str, _SourceFile]]] = defaultdict(list)
    for (label, _), files in by_folder.items():
        files.sort(key=lambda file: (file.key, file.name))
        by_label[label] += [(turn, file.key, file.name, file) for turn, file in enumerate(files)]
    return {kind.label: [file for *_, file in sorted(by_label[kind.label])] for kind in FILE_TYPES}


def _walk(root: Path, closed: Collection[Path]) -> Iterator[tuple[str, str]]:
    """(folder, name) of files under `root`, without what is in `closed` or another environment's packages."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in ("site-packages", "dist-packages") and Path(folder, name) not in closed
        ]
        yield from ((folder, name) for name in names)


def _suffix(name: str) -> str:
    if ".so." in name:  # libname.so.1.2
        return ".so"
    return os.path.splitext(name)[1].lower()


def _is_near_copy(name: str) -> bool:
    """Whether a file repeats another one with small changes, which a hash of its content does not show.

    Optimised bytecode repeats the plain bytecode; licences repeat each other.
    """
    return ".opt-" in name or any(word in name.lower() for word in ("license", "licence", "copying", "notice"))


def _read_distinct(kind: FileType, candidates: Sequence[_SourceFile], most: int) -> list[_SourceFile]:
    """The first files, `most` at most, that can be read, are of their type and repeat none before them."""
    files: dict[str, _SourceFile] = {}
    for file in candidates:
        if len(files) == most:
            break
        try:
            with open(file.path, "rb") as stream:
                if not kind.accepts(stream.read(HEAD_BYTES)):
                    continue
                stream.seek(0)
                group = file_digest(stream, partial(blake2b, digest_size=16)).hexdigest()
        except OSError:  # not readable, or gone: the sample does without it
            continue
        files.setdefault(group, replace(file, group=group))
    return list(files.values())


def _plan_rows(used: dict[str, list[_SourceFile]], rows: int, fragment_bytes: int) -> _Plan:
    """As many fragments of each label, from its files in turn; then all labels mixed."""
    files = [file for own in used.values() for file in own]
    num_places = np.array([file.num_bytes - fragment_bytes + 1 for file in files])
    keys = np.array([file.key for file in files], np.uint64)
    shares = np.diff(np.arange(len(used) + 1) * rows // len(used))
    ends = np.cumsum([len(own) for own in used.values()])

    file_parts, turn_parts = [], []
    for name, end, share in zip(used, ends, shares, strict=True):
        own = slice(end - len(used[name]), end)
        if num_places[own].sum() < share:
            raise SampleError(
                f"{share} different fragments of {fragment_bytes} bytes are needed of {name} files; its "
                f"{len(used[name])} files have {num_places[own].sum()}. Ask for fewer rows."
            )
        file_of_draw, turn_of_draw = _take_turns(num_places[own], int(share))
        file_parts.append(file_of_draw + own.start)
        turn_parts.append(turn_of_draw)
    file, turn = np.concatenate(file_parts), np.concatenate(turn_parts)
    label = np.repeat(np.arange(len(used)), shares)
    offset = _places(keys, num_places, file, turn)
    mixed = np.argsort(_scramble(keys[file] ^ _scramble(turn.astype(np.uint64))), kind="stable")
    return _Plan(files, list(used), file[mixed], label[mixed], offset[mixed])


def _take_turns(limits: Indices, num_draws: int) -> tuple[Indices, Indices]:
    """Draw from each file in turn, from none more often than its limit.

    limits: int64 (files,), `num_draws` or more in all. Returns the file of each draw, and how often the file
    was drawn before: int64 (num_draws,) both.
    """
    full_turns = bisect_right(range(num_draws + 1), num_draws, key=lambda n: np.minimum(limits, n).sum()) - 1
    draws = np.minimum(limits, full_turns)
    draws[np.flatnonzero(limits > full_turns)[: num_draws - draws.sum()]] += 1
    turn = np.arange(num_draws) - np.repeat(np.cumsum(draws) - draws, draws)
    return np.repeat(np.arange(len(limits)), draws), turn


def _places(keys: npt.NDArray[np.uint64], num_places: Indices, file: Indices, turn: Indices) -> Indices:
    """Offset of each draw in its file, int64 like `file` and `turn`: none twice in a file, and far apart.

    The draws of a file stand at `first + turn * step`, modulo the number of places. With a step near the
    golden section of that number, any count of draws is spread evenly (Knuth, TAOCP 3, section 6.4, theorem
    S); with a step that has no divisor in common with it, each place comes once before any comes again.
    """
    step = np.maximum(1, np.round(num_places * ((5**0.5 - 1) / 2))).astype(np.int64)
    while (shared := np.gcd(step, num_places) > 1).any():
        step[shared] += 1
    first = (_scramble(keys) % num_places.astype(np.uint64)).astype(np.int64)
    offset: Indices = (first[file] + turn * step[file]) % num_places[file]
    return offset


def _scramble(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014), a random-looking bijection of uint64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _write_file(target: Path, plan: _Plan, rows: Indices, fragment_bytes: int) -> Iterator[int]:
    """Write these rows of the plan, complete or not at all. Yields the rows of each row group once written."""
    rows_per_group = max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // fragment_bytes))
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with pq.ParquetWriter(unfinished, SCHEMA, compression="zstd", use_dictionary=["label", "group"]) as writer:
            for first in range(0, len(rows), rows_per_group):
                chunk = rows[first : first + rows_per_group]
                writer.write_table(_read_fragments(plan, chunk, fragment_bytes))
                yield len(chunk)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _read_fragments(plan: _Plan, rows: Indices, fragment_bytes: int) -> pa.Table:
    """These rows of the plan, in order. Each file is opened once for all its fragments among them."""
    file, offset = plan.file[rows], plan.offset[rows]
    tokens = np.empty((len(rows), fragment_bytes), np.uint8)
    by_file = np.argsort(file, kind="stable")
    for own in np.split(by_file, np.flatnonzero(np.diff(file[by_file])) + 1):
        path = plan.files[file[own[0]]].path
        try:
            with open(path, "rb", buffering=0) as stream:
                for row in own.tolist():
                    stream.seek(offset[row])
                    if stream.readinto(tokens[row]) != fragment_bytes:
                        raise OSError("it has become shorter")
        except OSError as error:
            raise SampleError(f"{path} changed while it was sampled ({error}). Sample again.") from error
    ends = np.arange(len(rows) + 1, dtype=np.int32) * np.int32(fragment_bytes)
    files = [plan.files[index] for index in file.tolist()]
    return pa.table(
        [
            [f"{source.name}@{place}" for source, place in zip(files, offset.tolist(), strict=True)],
            pa.Array.from_buffers(pa.binary(), len(rows), [None, pa.py_buffer(ends), pa.py_buffer(tokens)]),
            [plan.labels[index] for index in plan.label[rows].tolist()],
            [source.group for source in files],
        ],
        schema=SCHEMA,
    )
