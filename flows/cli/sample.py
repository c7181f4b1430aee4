"""Demonstration data: fixed-size fragments of the files on this machine, labelled by file type.

Owns which files count as which type, which fragments are taken, and how they are spread over dates. Every choice
follows from hashes of relative paths and contents, so the same files give the same Parquet files, byte for byte. Knows
nothing about how a sample is learned from or scored.
"""

import math
import os
import stat
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from datetime import date, timedelta
from functools import partial
from hashlib import blake2b, file_digest
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.locations import Location

MIN_TYPES = 8
"""Fewer file types make no task worth learning."""

MIN_FILES_PER_TYPE = 64
"""Distinct files. A split by file holds out a tenth of them, and fewer than six say little about a type."""

_COLUMNS = ("id", "tokens", "label", "group")
_SCHEMA = pa.schema([pa.field(name, pa.binary() if name == "tokens" else pa.string(), False) for name in _COLUMNS])

# Labels, and the ends of names of the files that carry them. Chosen for bytes whose order tells more than their
# frequency: Python, its stubs and the text in both share an alphabet, and bytecode holds docstrings. Cython is left
# out, because most of it reads as Python. Two formats have no ending: RECORD lists the files of an installed package,
# and METADATA is its read-me.
_ENDINGS = {
    "c-header": (".h", ".hh", ".hpp", ".cuh"),
    "csv": (".csv", "RECORD"),
    "html": (".html", ".htm"),
    "javascript": (".js", ".mjs"),
    "json": (".json",),
    "native-library": (".so", ".dylib", ".dll", ".pyd"),
    "png": (".png",),
    "python": (".py",),
    "python-bytecode": (".pyc",),
    "python-stub": (".pyi",),
    "text": (".txt", ".md", ".rst", "METADATA"),
    "timezone": ("",),
}
_LABELS = {ending: label for label, endings in _ENDINGS.items() for ending in endings}

# Where a file of a type has one of which bytes. A file of another type is text, and its head has no NUL.
_MAGIC = {
    "native-library": (0, (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"MZ")),
    "png": (0, (b"\x89PNG\r\n\x1a\n",)),
    "python-bytecode": (2, (b"\r\n",)),
    "timezone": (0, (b"TZif",)),
}
# Names of files that repeat another one with small changes, which a hash of the content does not show: optimised
# bytecode repeats the plain bytecode, and licences repeat each other.
_NEAR_COPIES = (".opt-", "license", "licence", "copying", "notice")
# Folders in which another environment keeps its packages.
_PACKAGES = ("site-packages", "dist-packages")


class _File(NamedTuple):
    """key: hash of the name. name: the source folder's and the path in it. group: hash of the content, once read."""

    key: int
    name: str
    path: str
    num_bytes: int
    group: str = ""


_Fragment = tuple[str, _File, int]  # label, file and offset


def write_sample(
    root: Path,
    *,
    rows: int,
    fragment_bytes: int,
    days: int,
    start: date,
    sources: tuple[Path, ...] | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, int]:
    """Write `root/date=YYYY-MM-DD/part-0.parquet` for each day, and return the number of rows of each label.

    rows: fragments in all, as many of one file type as of another, spread evenly over the days.
    fragment_bytes: length of every fragment; smaller files are not used. start: the first of the days.
    sources: folders; None for the packages and the standard library of the running Python environment.
    on_progress: called with the number of rows written.

    Columns: `id` (string: the file and the fragment's offset in it), `tokens` (binary), `label` (string), `group`
    (string: a hash of the file's content; a split must keep fragments of one file, or of its copies, together).

    Raises ValueError if fewer than MIN_TYPES types have MIN_FILES_PER_TYPE distinct files, if a type has too few
    distinct fragments, if there are fewer rows than days or types, or if `root` holds other Parquet files.
    """
    targets = [root / f"date={start + timedelta(days=day)}" / "part-0.parquet" for day in range(days)]
    if rows < max(days, len(_ENDINGS)):
        raise ValueError(f"rows must be at least 1 for each of {len(_ENDINGS)} file types and {days} days, not {rows}")
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file; the sample needs a folder.")
    if others := sorted(set(root.rglob("*.parquet")).difference(targets)):
        raise ValueError(
            f"{root} holds Parquet files that this sample would not replace, {len(others)} of them; the first is "
            f"{others[0]}. Readers would mix the two: write to another folder, or delete this one."
        )
    fragments = _draw(_choose(sources or _environment(), rows, fragment_bytes, root.resolve()), rows, fragment_bytes)
    group_rows = max(1, min(65_536, 64 * 2**20 // fragment_bytes))  # what a reader holds at once
    for target, chosen in zip(targets, np.array_split(np.arange(rows), days), strict=True):
        table = _read(fragments[chosen[0] : chosen[-1] + 1], fragment_bytes)
        with Location.parse(target).replacing() as file:
            pq.write_table(table, file, group_rows, compression="zstd", use_dictionary=["label", "group"])
        on_progress(int(chosen[-1]) + 1)
    return dict(sorted(Counter(label for label, _, _ in fragments).items()))


def _environment() -> tuple[Path, ...]:
    """The folders of this environment's packages and standard library."""
    own = (sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib"))
    return (*map(Path, own), Path(pa.__file__).parents[1])  # the last for packages borrowed from another environment


def _choose(sources: tuple[Path, ...], rows: int, fragment_bytes: int, output: Path) -> dict[str, list[_File]]:
    """Distinct files of each label that has enough of them. Raises ValueError if few labels have."""
    folders = list(dict.fromkeys(folder.resolve() for folder in sources))
    candidates = _candidates(folders, fragment_bytes, output)
    most = max(MIN_FILES_PER_TYPE, -(-rows // MIN_TYPES))
    found = {label: _distinct(label, candidates[label], most) for label in _ENDINGS}
    used = {label: files for label, files in found.items() if len(files) >= MIN_FILES_PER_TYPE}
    if len(used) < MIN_TYPES:
        too_few = ", ".join(f"{label} {len(files)}" for label, files in found.items() if label not in used)
        raise ValueError(
            f"Expected {MIN_TYPES} file types with {MIN_FILES_PER_TYPE} distinct files of {fragment_bytes} bytes or "
            f"more each; found {len(used)} ({', '.join(used) or 'none'}) in {', '.join(map(str, folders))}. Too few: "
            f"{too_few}. Ask for shorter fragments, or sample an environment with more packages."
        )
    return used


def _candidates(folders: list[Path], fragment_bytes: int, output: Path) -> dict[str, list[_File]]:
    """Files by label, by name and size alone, in the order in which they are to be used.

    The order takes one file of each folder in turn, so that thousands of generated headers in one folder do not crowd
    out the others. Within a folder and a turn hashes of names decide. Symbolic links are passed over.
    """
    closed = {output, *folders}
    by_folder: dict[tuple[str, str], list[_File]] = defaultdict(list)
    for root in folders:
        for folder, subfolders, names in os.walk(root):
            # Neither the sample itself, nor a source within another, nor packages of other environments.
            subfolders[:] = [name for name in subfolders if name not in _PACKAGES and Path(folder, name) not in closed]
            for name in names:
                ending = ".so" if ".so." in name else os.path.splitext(name)[1].lower()  # libname.so.1.2
                label = _LABELS.get(name) or _LABELS.get(ending)
                if label is None or any(part in name.lower() for part in _NEAR_COPIES):
                    continue
                path = os.path.join(folder, name)
                with suppress(OSError):  # gone since it was listed
                    status = os.lstat(path)
                    if stat.S_ISREG(status.st_mode) and status.st_size >= fragment_bytes:
                        place = root.name + path.removeprefix(str(root)).replace(os.sep, "/")
                        key = int.from_bytes(blake2b(os.fsencode(f"0:{place}"), digest_size=8).digest(), "little")
                        by_folder[label, folder].append(_File(key, place, path, status.st_size))
    by_turn: dict[str, list[tuple[int, _File]]] = defaultdict(list)
    for (label, _), files in by_folder.items():
        by_turn[label] += enumerate(sorted(files))
    return {label: [file for _, file in sorted(by_turn[label])] for label in _ENDINGS}


def _distinct(label: str, candidates: list[_File], most: int) -> list[_File]:
    """The first files, `most` at most, that can be read, are of their type and repeat none before them."""
    files: dict[str, _File] = {}
    place, magic = _MAGIC.get(label, (0, ()))
    for file in candidates:
        if len(files) == most:
            break
        with suppress(OSError), open(file.path, "rb") as stream:  # not readable, or gone: the sample does without it
            head = stream.read(512)
            if head.startswith(magic, place) if magic else b"\0" not in head:
                stream.seek(0)
                group = file_digest(stream, partial(blake2b, digest_size=16)).hexdigest()
                files.setdefault(group, file._replace(group=group))
    return list(files.values())


def _draw(used: dict[str, list[_File]], rows: int, fragment_bytes: int) -> list[_Fragment]:
    """As many fragments of each label, from its files in turn; all labels mixed, in an order that hashes decide."""
    drawn: list[tuple[int, _Fragment]] = []
    for number, (label, files) in enumerate(used.items()):
        share = (number + 1) * rows // len(used) - number * rows // len(used)
        places = [(file, file.num_bytes - fragment_bytes + 1) for file in files]
        available = sum(num_places for _, num_places in places)
        if available < share:
            raise ValueError(
                f"{share} different fragments of {fragment_bytes} bytes are needed of {label} files; its {len(files)} "
                f"files have {available}. Ask for fewer rows."
            )
        in_turn = ((turn, *place) for turn in count() for place in places if turn < place[1])
        for turn, file, num_places in islice(in_turn, share):
            fragment = label, file, _offset(file.key, num_places, turn)
            drawn.append((_scramble(file.key ^ _scramble(turn)), fragment))
    return [fragment for _, fragment in sorted(drawn, key=lambda each: each[0])]


def _offset(key: int, num_places: int, turn: int) -> int:
    """Where in its file the fragment of a turn begins: no place twice in `num_places` turns, and all far apart.

    With a step near the golden section, any count of draws is spread evenly (Knuth, TAOCP 3, section 6.4, theorem S);
    with a step that has no divisor in common with the number of places, each comes once before any comes again.
    """
    step = max(1, round(num_places * ((5**0.5 - 1) / 2)))
    while math.gcd(step, num_places) > 1:
        step += 1
    return (_scramble(key) + turn * step) % num_places


def _scramble(value: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014), a random-looking bijection of 64-bit integers."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def _read(fragments: list[_Fragment], fragment_bytes: int) -> pa.Table:
    """The columns of a sample. Raises ValueError if a file has changed since it was chosen."""
    rows = []
    for label, file, offset in fragments:
        with open(file.path, "rb", buffering=0) as stream:
            stream.seek(offset)
            tokens = stream.read(fragment_bytes)
        if len(tokens) != fragment_bytes:
            raise ValueError(f"{file.path} changed while it was sampled. Sample again.")
        rows.append((f"{file.name}@{offset}", tokens, label, file.group))
    return pa.table(list(zip(*rows, strict=True)), schema=_SCHEMA)
