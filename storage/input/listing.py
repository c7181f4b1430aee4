"""What lies below a folder, on a disk or in an object store: files, links, and what can't be looked into.

Follows links without ever going in circles. Knows nothing about which files are input; see `storage.input.sources`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow.fs as pafs

from storage.errors import SourceError
from storage.locations import Location


@dataclass(frozen=True)
class PassedOver:
    """A file or folder of a source that is not read, and why. name: below the source's root."""

    name: str
    reason: str


@dataclass(frozen=True)
class Entry:
    """A file below the folder. name: relative to it. real: where it lies, links resolved; None in an object store.

    by_link: there is a link on the way to it. problem: why it can't be opened, whatever is in it.
    """

    name: str
    num_bytes: int
    real: str | None = None
    by_link: bool = False
    problem: str | None = None


@dataclass
class Listing:
    """entries: in order of name, what no link leads to first. passed_over: what could not be listed."""

    entries: list[Entry] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)


def list_folder(place: Location, *, follow_again: bool) -> Listing:
    """All files below a folder; nothing within folders whose names begin with a dot, which are entries themselves.

    follow_again: go through a link to a folder although its files are listed without the link.
    Raises SourceError if the folder itself can't be listed.
    """
    if place.is_local:
        listing = _LocalWalk(follow_again).list(place.path)
    else:
        files = (info for info in place.walk() if info.type == pafs.FileType.File)
        listing = Listing([_object(info.path.removeprefix(f"{place.path}/"), info.size) for info in files])
    listing.entries.sort(key=lambda entry: (entry.by_link, entry.name))
    return listing


def _object(name: str, num_bytes: int) -> Entry:
    """An entry of an object store. Of a key with `//` or `..` the name keeps them, so that it is no other object's."""
    odd = next((odd for odd in ("", ".", "..") if odd in name.split("/")), None)
    problem = None
    if odd is not None:
        problem = f"its key has /{odd}/ in it, so no path leads to it; give the object another key"
    return Entry(name, num_bytes, problem=problem)


class _LocalWalk:
    """First all that no link leads to, then one link after the other."""

    def __init__(self, follow_again: bool) -> None:
        self._follow_again = follow_again
        self._listing = Listing()
        self._links: list[tuple[str, str, tuple[str, ...]]] = []  # path, name, the real folders that led to it
        self._seen: dict[str, str] = {}  # real folders, by the name that they were first listed under

    def list(self, root: str) -> Listing:
        try:
            os.scandir(root).close()
        except OSError as error:
            raise SourceError(f"The source {root} can't be listed: {error.strerror}.") from None
        self._folder(root, "", ())
        while self._links:
            self._links.sort(reverse=True, key=lambda link: link[1])
            self._link(*self._links.pop())
        return self._listing

    def _folder(self, path: str, name: str, above: tuple[str, ...]) -> None:
        """above: the real folders in which the links lie that lead here."""
        by_link = bool(above)
        waiting: list[tuple[str, str]] = [(path, name)]
        while waiting:
            path, name = waiting.pop()
            real = os.path.realpath(path)
            self._seen.setdefault(real, name)
            for child, below in self._children(path, name):
                if child.is_symlink():
                    self._links.append((child.path, below, (*above, real)))
                elif child.is_dir(follow_symlinks=False):
                    if child.name.startswith("."):
                        self._listing.entries.append(Entry(below, 0, by_link=by_link))
                    else:
                        waiting.append((child.path, below))
                elif child.is_file(follow_symlinks=False):
                    self._file(child.path, below, os.path.join(real, child.name), by_link)
                else:
                    self._pass_over(below, "neither a file nor a folder")

    def _children(self, path: str, name: str) -> Iterator[tuple["os.DirEntry[str]", str]]:
        try:
            with os.scandir(path) as children:
                for child in sorted(children, key=lambda child: child.name):
                    yield child, f"{name}/{_printable(child.name)}".lstrip("/")
        except OSError as error:
            self._pass_over(name, f"a folder that can't be listed: {error.strerror}")

    def _link(self, path: str, name: str, above: tuple[str, ...]) -> None:
        target = os.path.realpath(path)
        if os.path.isdir(path):
            if any(folder == target or folder.startswith(target.rstrip("/") + "/") for folder in above):
                self._pass_over(name, "a link to a folder that it is in")
            elif target in self._seen and not self._follow_again:
                self._pass_over(name, f"a link to {self._seen[target] or 'the source'}, which is read without it")
            elif not os.path.basename(path).startswith("."):
                self._folder(path, name, above)
        elif os.path.isfile(path):
            self._file(path, name, target, by_link=True)
        else:
            problem = f"a link to {_printable(os.readlink(path))}, which does not exist or can't be reached"
            self._listing.entries.append(Entry(name, 0, target, True, problem))

    def _file(self, path: str, name: str, real: str, by_link: bool) -> None:
        problem = None if _is_text(path) else "its name, or its folder's, is not UTF-8; rename it"
        try:
            num_bytes = os.stat(path).st_size
        except OSError as error:  # gone since it was listed
            num_bytes, problem = 0, f"can't be opened: {error.strerror}"
        self._listing.entries.append(Entry(name, num_bytes, real, by_link, problem))

    def _pass_over(self, name: str, reason: str) -> None:
        self._listing.passed_over.append(PassedOver(name, reason))


def _is_text(name: str) -> bool:
    """Whether a path is UTF-8. What is not arrives from Python with surrogates in it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(name: str) -> str:
    """A name with the bytes that are not UTF-8 as escapes."""
    return name if _is_text(name) else os.fsencode(name).decode(errors="backslashreplace")
