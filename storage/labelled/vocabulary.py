"""Token ids of labelled rows that lie outside the vocabulary: how many rows have them, and which vocabulary they need.

Owns the words for it. Knows nothing about files.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.errors import SourceError
from storage.input.tokens import token_extent

MOST_EMBEDDINGS = 65_536
"""Token ids of the largest vocabulary that is trained, padding included."""


@dataclass(frozen=True)
class Outside:
    """Labelled rows with a token id outside the vocabulary. least, largest: of all token ids of these rows."""

    num_rows: int
    least: int
    largest: int

    @classmethod
    def of(cls, tokens: pa.ChunkedArray, is_outside: npt.NDArray[np.bool_]) -> Self | None:
        """Those among N rows of a column of lists. is_outside: bool (N,), which they are. None if there are none."""
        num_rows = int(np.count_nonzero(is_outside))
        return cls(num_rows, *token_extent(tokens, is_outside)) if num_rows else None

    @classmethod
    def sum(cls, parts: "Iterable[Outside | None]") -> Self | None:
        """Those of all parts; None if there are none."""
        found = [part for part in parts if part is not None]
        if not found:
            return None
        return cls(
            sum(part.num_rows for part in found),
            min(part.least for part in found),
            max(part.largest for part in found),
        )

    @property
    def which(self) -> str:
        """The ids that show what is wrong, in words."""
        return f"the largest is {self.largest:,}" if self.least >= 0 else f"the least is {self.least:,}"

    def refuse(self, num_labelled: int, num_tokens_known: int, where: str) -> NoReturn:
        """Raises SourceError, which says what vocabulary would take the rows. num_labelled: all that have a label."""
        needed = self.largest + 2  # with 0 and with padding
        advice = f"--num-embeddings {needed} makes a network that knows them all."
        if self.least < 0:
            advice = "Token ids begin with 0; number them anew."
        elif needed > MOST_EMBEDDINGS:
            advice = f"--num-embeddings may be up to {MOST_EMBEDDINGS}; number the tokens anew, the rare ones alike."
        raise SourceError(
            f"{self.num_rows:,} of the {num_labelled:,} labelled rows of the source {where} have token ids outside "
            f"0..{num_tokens_known - 1} ({self.which}), which can't be trained on. {advice}"
        )
