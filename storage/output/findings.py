"""What is found wrong with an output: problems at their places, listed up to a limit and counted beyond it.

Knows nothing about what to look for, nor how values are compared.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where. path: below the output's root. row: position in that file, from 0; None for all."""

    path: str
    row: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.path}{'' if self.row is None else f', row {self.row}'}: {self.what}"


@dataclass
class Findings:
    """The first problems of a shard, in order of their rows, and how many more there are."""

    limit: int
    kept: list[Problem] = field(default_factory=list)
    num_more: int = 0
    _new: list[Problem] = field(default_factory=list)

    def add(self, path: str, row: int | None, what: str) -> None:
        self._new.append(Problem(path, row, what))

    def add_rows(
        self, path: str, rows: npt.NDArray[np.int64], wrong: npt.NDArray[np.bool_], what: Callable[[int], str]
    ) -> None:
        """rows: (N,), positions in the file. wrong: bool (N,), which of them are. what: says it of the i-th of N."""
        places = np.flatnonzero(wrong)
        for place in places[: self.limit].tolist():
            self.add(path, int(rows[place]), what(place))
        self.num_more += max(0, len(places) - self.limit)

    def settle(self) -> None:
        """Keep the first of those that were added since the last call."""
        self._new.sort(key=lambda problem: -1 if problem.row is None else problem.row)
        room = self.limit - len(self.kept)
        self.kept += self._new[:room]
        self.num_more += len(self._new[room:])
        self._new = []
