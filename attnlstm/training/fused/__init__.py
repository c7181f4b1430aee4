"""A training step's loss and gradients on a CPU: compiled passes over ragged rows, for the networks that they know.

Owns what is prepared for them: which networks fit, groups of rows and the threads that share them, memory, and random
numbers of the dropout. Knows nothing about the arithmetic, which is `kernel`'s and `tiles`', or where weights lie,
which is `layout`'s. Numba is imported when gradients are asked for, not with this file.
"""

import threading
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt
import torch

from attnlstm.batching import plan_batches
from attnlstm.engines.fused_cpu import aligned, fits
from attnlstm.network import AttentionLSTM
from attnlstm.training.fused.layout import Arrays, Layout, padded
from attnlstm.training.rows import LabelledSequences

ROWS_PER_GROUP = 16
"""Rows that a thread computes side by side: enough for a few tiles, and few enough to keep several threads busy. It
depends on nothing but the rows, so that sums come out the same on any number of threads."""

TOKENS_WORTH_A_THREAD = 512
"""Groups that would have fewer tokens than these get more rows: short rows cost little next to the calls."""

GROUP_BYTES = 1 << 27
"""Of what is kept of a group's tokens between the passes, 128 MiB. A longer row is a group of its own."""

LARGEST_TABLE_BYTES = 1 << 22
"""Of what tokens add to the sums of the first layer, 4 MiB: its gradient is added up for each group."""


def why_not_fused(network: torch.nn.Module) -> str | None:
    """None if the fused step can train this network, otherwise why it can't."""
    if type(network) is not AttentionLSTM:
        return f"it is made for the network itself, and {type(network).__name__} may compute something else"
    parameters = list(network.parameters())
    if any(not parameter.requires_grad for parameter in parameters):
        return "some of the parameters are not to be trained"
    if any(parameter.device.type != "cpu" or parameter.dtype != torch.float32 for parameter in parameters):
        return "it computes on a CPU, in float32"
    config = network.config
    table_bytes = 2 * config.num_embeddings * 4 * padded(config.hidden_size) * 4
    if config.longest_ngram == 1 and table_bytes > LARGEST_TABLE_BYTES:
        return (
            f"num_embeddings is {config.num_embeddings}, which makes a table of {table_bytes >> 20} MiB for each "
            f"group of rows; at most {LARGEST_TABLE_BYTES >> 20} are used"
        )
    return fits(config)


class FusedGradients:
    """A network's mean loss and its gradients, batch by batch.

    network: whose parameters are read anew for each batch, and get their gradients; see `why_not_fused`.
    class_weights: float32 (C,), what a row of each class is worth. clip_norm: longest gradient that is left as it is.
    seed: of the dropout. workers: compute the groups of a batch.
    The loss and the gradients are the same bits on any number of threads.
    """

    def __init__(
        self,
        network: AttentionLSTM,
        *,
        class_weights: npt.NDArray[np.float32],
        clip_norm: float,
        seed: int,
        workers: Executor,
    ) -> None:
        from attnlstm.training.fused import kernel, passes, tiles

        self._config = config = network.config
        self._class_weights = class_weights.astype(np.float64)
        self._clip_norm = clip_norm
        self._seed = seed
        self._workers = workers
        self._run_group, self._prepare, self._add_to_tables, self._finish = kernel.compile_step()
        self._new_slots, self._record = passes.new_slots, tiles.RECORD

        named = dict(network.named_parameters())
        # Tables of n-grams are read, and get their gradients, where they are.
        tables = named.pop("ngrams", torch.zeros(0, 0, 0))
        self._tables, self._of_tables = tables.detach().numpy(), np.zeros(tables.shape, np.float32)
        if config.longest_ngram > 1:
            tables.grad = torch.from_numpy(self._of_tables)
        self._layout = layout = Layout(config, {name: tuple(each.shape) for name, each in named.items()}, passes.LANES)
        self._parameters = [each.detach().numpy().reshape(-1) for each in named.values()]
        self._flat = np.zeros(layout.num_parameters + 1, np.float32)
        flat_weights = aligned((layout.weights.size,))
        self._weights = layout.weights.views(flat_weights) | {"all": flat_weights}
        size = self._size = padded(config.hidden_size)
        self._table = aligned((2, 0 if len(self._tables) else config.num_embeddings, 4 * size))
        self._biases = aligned((config.num_layers, 2, 4 * size))
        self._score_weights = aligned((2 * size,))
        # One more number, which stays 0: the gradient of what makes no difference.
        flat_gradients = aligned((layout.gradients.size + 1,))
        self._gradients = layout.gradients.views(flat_gradients) | {"all": flat_gradients}
        self._groups: list[Arrays] = []
        self._scratch = threading.local()
        self._kept_of_tokens = aligned((0, 0)), aligned((0, 0))

        self._of_parameters = np.zeros(layout.num_parameters, np.float32)
        pieces = torch.split(torch.from_numpy(self._of_parameters), [each.numel() for each in named.values()])
        for parameter, piece in zip(named.values(), pieces, strict=True):
            parameter.grad = piece.view(parameter.shape)

    def compute(self, batch: LabelledSequences, step: int) -> float:
        """The batch's mean loss. The parameters' `grad` are overwritten."""
        weights, gradients, layout, config = self._weights, self._gradients, self._layout, self._config
        np.concatenate(self._parameters, out=self._flat[:-1])
        self._prepare(
            self._flat, layout.source, layout.scale, weights["all"], weights["embedding"], weights["first_forward"],
            weights["bias_ih"], weights["bias_hh"], weights["keys"], weights["query"],
            self._biases, self._table, self._score_weights,
        )  # fmt: skip
        values = np.ascontiguousarray(batch.values, np.int32)
        lengths = batch.lengths
        labels = np.ascontiguousarray(batch.labels, np.int64)
        worths = self._class_weights[labels] / len(batch)
        # The last are of n-grams.
        drop_keys = np.zeros((config.num_layers, len(batch)), np.uint32)
        if config.dropout or config.ngram_dropout:
            rng = np.random.default_rng((self._seed, 2, step))
            drop_keys = rng.integers(0, 1 << 32, drop_keys.shape, np.uint32)
        drops = [
            number
            for share in (config.dropout, config.ngram_dropout)
            for number in (min(round(share * 2**32), 2**32 - 1), np.float32(1 / (1 - share)))
        ]
        features = weights["embedding"].shape[1]
        d_embedded, d_of_ngrams = self._of_tokens(len(values) if len(self._tables) else 0, features)

        no_first, no_first_bias = np.zeros((0, 0, 0), np.float32), np.zeros((0, 0), np.float32)

        def run(numbered: tuple[Arrays, npt.NDArray[np.int64]]) -> float:
            of_group, rows = numbered
            scratch = self._scratch_of_thread(len(rows), int(lengths[rows].sum()))
            loss = np.empty(1)
            self._run_group(
                values, batch.offsets, rows, labels, worths, drop_keys, *drops,
                weights["embedding"], self._tables, weights["first_forward"], weights["first_backward"],
                weights["ngram_context"],
                self._table, self._biases, weights["in_forward"], weights["in_backward"],
                weights["own_forward"], weights["own_backward"], self._score_weights,
                weights["hidden_in"], weights["hidden"], weights["hidden_bias"],
                weights["class_in"], weights["class"], weights["class_bias"],
                *scratch,
                d_embedded, d_of_ngrams, of_group.get("first", no_first), of_group.get("first_bias", no_first_bias),
                of_group["ngram_context"],
                of_group["table"], of_group["biases"], of_group["in"], of_group["own"], of_group["score"],
                of_group["hidden"], of_group["hidden_bias"], of_group["class"], of_group["class_bias"], loss,
            )  # fmt: skip
            return float(loss[0])

        groups = self._plan(lengths)
        while len(self._groups) < len(groups):
            flat = aligned((layout.of_group.size,))
            self._groups.append(layout.of_group.views(flat) | {"all": flat})
        # The list runs the threads to the end; a failure in one is raised here.
        loss = sum(list(self._workers.map(run, zip(self._groups, groups, strict=False))))

        total = gradients["all"][: layout.of_group.size]
        total[:] = self._groups[0]["all"]
        for of_group in self._groups[1 : len(groups)]:
            total += of_group["all"]
        square = np.zeros(1)
        if len(self._tables):
            self._add_to_tables(
                values, batch.offsets, d_embedded, d_of_ngrams, gradients["embedding"], self._of_tables, square
            )
        share = self._finish(
            gradients["all"], gradients["table"], gradients["score"], weights["embedding"], weights["first_backward"],
            weights["keys"], weights["query"], gradients["embedding"], gradients["first"], gradients["first_bias"],
            gradients["keys"], gradients["query"], layout.target, self._clip_norm, square[0],
            self._of_parameters,
        )  # fmt: skip
        if share != 1:
            self._of_tables *= np.float32(share)
        return loss

    def _plan(self, lengths: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """The rows of each group: of like lengths, and nearly as many in each."""
        token_bytes = 4 * self._size * 2 * ((self._record + 2) * self._config.num_layers + 1)
        max_rows = max(ROWS_PER_GROUP, TOKENS_WORTH_A_THREAD // int(lengths.max()))
        num_groups = -(-len(lengths) // max_rows)
        max_rows = -(-len(lengths) // num_groups)
        return list(plan_batches(lengths, max_tokens=GROUP_BYTES // token_bytes, max_rows=max_rows))

    def _of_tokens(self, num_tokens: int, features: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Places for the gradients of a batch's tokens, which are kept."""
        if len(self._kept_of_tokens[0]) < num_tokens or not num_tokens:
            self._kept_of_tokens = aligned((num_tokens, features)), aligned((num_tokens, features))
        return self._kept_of_tokens

    def _scratch_of_thread(self, num_rows: int, num_tokens: int) -> tuple[npt.NDArray[np.float32], ...]:
        """What is kept between the passes, by each thread: fresh memory costs more than it seems."""
        num_positions = num_tokens + num_rows + 1
        kept: tuple[npt.NDArray[np.float32], ...] | None = getattr(self._scratch, "kept", None)
        if kept is None or kept[6].shape[1] < num_positions or kept[7].shape[1] < num_rows:
            L, D, P = self._config.num_layers, self._size, num_positions
            with_dropout = P * 2 * D if self._config.dropout else 0
            with_ngrams = P if len(self._tables) else 0
            features = self._weights["embedding"].shape[1]
            kept = (
                aligned((L, 2, P * self._record * D)), aligned((L, P * 2 * D)), aligned((L - 1, with_dropout)),
                aligned((with_ngrams, features)), aligned((with_ngrams, features)),
                aligned((P, 2 * D)), aligned((2, P)), aligned((2, num_rows, D)), self._new_slots(num_rows),
            )  # fmt: skip
            self._scratch.kept = kept
        return kept
