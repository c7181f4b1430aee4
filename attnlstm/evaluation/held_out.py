"""Scoring held-out rows with one network or several in one pass, a few at a time: rows may be more than memory holds.

Knows nothing about registries, files or Prefect.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from attnlstm.network import AttentionLSTM

_TOKENS_AT_ONCE = 4 << 20


def score_held_out(
    networks: "Sequence[AttentionLSTM]",
    classes: tuple[str, ...],
    values: npt.NDArray[np.integer],
    offsets: npt.NDArray[np.int64],
    threads: int | None = None,
) -> list[npt.NDArray[np.float32]]:
    """For each network its probabilities, float32 (N, len(classes)), in the order of `classes`.

    A class that a network does not know has probability 0. Probabilities of classes that are not among `classes` are
    left out, so a row's may sum to less than 1; a row whose class is not known by a network is one it gets wrong.
    values, offsets: N ragged rows. threads: None for one a core.
    """
    from attnlstm.batching import plan_pieces
    from attnlstm.engines import open_engine
    from attnlstm.threads import num_cores

    engines = [open_engine(network, threads=threads or num_cores()) for network in networks]
    results = [np.zeros((len(offsets) - 1, len(classes)), np.float32) for _ in networks]
    for rows in plan_pieces(offsets, _TOKENS_AT_ONCE):
        first, last = offsets[rows.start], offsets[rows.stop]
        part, part_offsets = values[first:last], offsets[rows.start : rows.stop + 1] - first
        for network, engine, result in zip(networks, engines, results, strict=True):
            probabilities = engine.score(part, part_offsets).probabilities
            for place, name in enumerate(network.config.classes):
                if name in classes:
                    result[rows, classes.index(name)] = probabilities[:, place]
    return results
