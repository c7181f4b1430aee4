"""Which rows are in which fold."""

import numpy as np
import pytest

from attnlstm.training.cross_validation import NUM_FOLDS, chosen, folds_of
from attnlstm.training.rows import LabelledSequences


@pytest.mark.parametrize("num_groups", [3, NUM_FOLDS, 43])
def test_each_row_is_held_out_once_and_its_group_is_in_no_other_part(num_groups: int) -> None:
    rng = np.random.default_rng(67)
    groups = rng.integers(-(2**63), 2**63 - 1, num_groups)[np.arange(101) % num_groups]
    folds = list(folds_of(groups))
    assert len(folds) == min(num_groups, NUM_FOLDS)
    assert (sum(fold.held_out.astype(int) for fold in folds) == 1).all()
    for fold in folds:
        parts = [set(groups[part]) for part in (fold.train, fold.validation, fold.held_out)]
        assert all(parts)
        assert sum(map(len, parts)) == num_groups


def test_fewer_than_three_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="needs three groups of rows or more; there are 2"):
        list(folds_of(np.array([7, 7, 11])))


def test_chosen_rows_keep_their_tokens_and_labels() -> None:
    rows = LabelledSequences(np.array([1, 2, 3, 4, 5, 6]), np.array([0, 1, 3, 6]), np.array([2, 0, 1]))
    some = chosen(rows, np.array([True, False, True]))
    assert (some.values.tolist(), some.offsets.tolist(), some.labels.tolist()) == ([1, 4, 5, 6], [0, 1, 4], [2, 1])
