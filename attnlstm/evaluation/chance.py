"""What few held-out rows can show: how far chance alone moves a figure that is measured on them.

Owns the interval of an accuracy, and the number of rows below which one split is too few to decide by. Knows numpy
only, and nothing of what is decided.
"""

import math

import numpy as np
import numpy.typing as npt

from attnlstm.evaluation.comparison import CONFIDENCE, numbered_groups, student_quantile

FEWEST_ROWS = 30
"""Held-out rows below which a figure says little: the interval of an accuracy of 0.9 is 0.2 wide there, and wider on
fewer."""


def accuracy_interval(
    right: npt.NDArray[np.bool_], groups: npt.NDArray[np.integer] | None = None
) -> tuple[float, float]:
    """Between which bounds the accuracy on rows like these is, with a probability of CONFIDENCE.

    right: bool (N,), N > 0, whether the class of each row is named. groups: integer (N,), equal for rows that belong
    together; None: every row for itself.
    Wilson's interval (1927), which keeps its width where all rows are right. N is divided by the design effect: how
    much more the accuracy varies as groups are drawn than it would with single rows (Dean and Pagano 2015). Where all
    rows are right or all wrong, that can't be seen, and groups count instead of rows.
    """
    numbers = numbered_groups(groups, len(right))
    sizes = np.bincount(numbers).astype(np.float64)
    num_rows, num_groups, p = len(right), len(sizes), float(right.mean())
    if 0 < p < 1:
        gaps = np.bincount(numbers, right) - p * sizes
        by_group = float((gaps**2).sum()) * num_groups / max(1, num_groups - 1)
        num_seen = max(1.0, num_rows / max(1.0, by_group / (num_rows * p * (1 - p))))
    else:
        num_seen = float(num_groups)
    z = student_quantile(CONFIDENCE, max(1, num_groups - 1))
    share = z**2 / num_seen
    middle = (p + share / 2) / (1 + share)
    half = math.sqrt(share * (p * (1 - p) + share / 4)) / (1 + share)
    return max(0.0, middle - half), min(1.0, middle + half)
