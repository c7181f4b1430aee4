"""The engine that runs the network itself, on a CPU or on a CUDA device, of any size.

Of a multihead network only the attention is what torch is best at: on a CPU the fused kernel computes its LSTM.
Owns the size of batches, what happens when one does not fit in memory, and the threads that share them. Knows
nothing about the network but its forward pass.

Shape letters: N rows, T tokens of all rows, B rows of a batch, C classes.
"""

import copy
import logging
import threading
import warnings
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attnlstm.batching import check_ragged, plan_batches, plan_pieces
from attnlstm.engines import Device, Precision, Scores
from attnlstm.engines.fused_cpu import layers_fit
from attnlstm.engines.transfers import CALLS_AT_ONCE, Arrays, Transfers, narrow
from attnlstm.network import AttentionLSTM
from attnlstm.process import memory_bytes, worker_threads

if TYPE_CHECKING:
    from attnlstm.engines.fused_cpu.layers import FusedLayers

logger = logging.getLogger(__name__)

MAX_TOKENS = {"cpu": 3 << 13, "cuda": 1 << 19}
"""Padded tokens of a batch. On a CPU more is no faster, and of 4 million tokens of skewed lengths it would pad more
than 2%; a GPU needs many rows to be busy."""

MAX_ROWS = {"cpu": 1024, "cuda": 1 << 14}
"""Rows of a batch, which matters where rows are short."""

MIN_ROWS = {"cpu": 16, "cuda": 256}
"""Rows of a batch where rows are long and alike (see `plan_batches`): with fewer, products of matrices are slow."""

BYTES_BY_HIDDEN_SIZE = 33
"""Of memory on a CPU, for each token of a row and each unit of the hidden size, as measured."""

PIECE_TOKENS = 1 << 24
"""Tokens that are on a device at once, of rows that may share batches."""


@dataclass(frozen=True)
class _Rows:
    """Ragged rows on the device, longest first, and where their results go.

    tokens: uint8 or int32 (T,). begins, lengths: int64 (N,), of each row in `tokens`.
    logits: float32 (N, C). weights: float32 (T + 1,), as `tokens` and one float to spare, where padding is put.
    """

    tokens: Tensor
    begins: Tensor
    lengths: Tensor
    logits: Tensor
    weights: Tensor


@dataclass(frozen=True)
class _Plan:
    """What is known of the same rows on the host. order: int64 (N,), the rows as `begins` has them. lengths: int64
    (N,), in that order. batches: slices of it."""

    order: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    batches: list[slice]


class TorchEngine:
    """A copy of a network, in evaluation mode, with threads of its own. Later changes to the network don't
    reach it.

    network: stays the caller's. device: "auto" takes a CUDA device if there is one. threads: batches
    computed side by side on a CPU, each on one core; which rows share a batch depends on the data alone, so
    results are the same bits for any number. precision: of the embedding and the LSTM; attention and classifier
    are float32. "bfloat16" moves logits by about 1e-3 and is faster on processors and GPUs that compute in it;
    "float16" is for CUDA devices. Raises ValueError if the device or its precision is not there or threads is
    below 1.

    A batch that does not fit in a GPU's memory is halved, and so are later ones; a warning is logged. Then results
    depend on the memory that was free, in their last bits. Raises MemoryError on a row that does not fit alone, on a
    CPU as well: there the system would end the process.
    """

    name = "torch"

    def __init__(
        self, network: AttentionLSTM, device: Device = "auto", threads: int = 1, precision: Precision = "float32"
    ) -> None:
        self.device = resolve_device(device)
        self.precision: Precision = precision
        self._network = _copy(network, _dtype(precision, self.device)).to(self.device)
        self._layers = _fused_layers(network, self.device, precision)
        self._workers = worker_threads(threads if self.device == "cpu" else CALLS_AT_ONCE, "torch-engine")
        self._most_tokens: float = float("inf")
        self._halving = threading.Lock()

    def score(self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> Scores:
        """See `Engine.score`."""
        logits, attention_weights = self._run(values, offsets)
        probabilities = (torch.from_numpy(logits) / self._network.config.temperature).softmax(-1)
        return Scores(probabilities.numpy(), attention_weights)

    def logits(self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Logits (N, C) of ragged rows before the temperature, which is what calibration needs. As `score`."""
        return self._run(values, offsets)[0]

    def _run(
        self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits (N, C) and attention weights (T,) of ragged rows."""
        check_ragged(values, offsets, self._network.config.padding_id)
        offsets = offsets.astype(np.int64, copy=False)
        logits = np.empty((len(offsets) - 1, self._network.config.num_classes), np.float32)
        weights = np.empty(len(values), np.float32)

        def pieces() -> Iterator[tuple[tuple[slice, _Plan], Arrays]]:
            for piece in plan_pieces(offsets, PIECE_TOKENS):
                first, last = int(offsets[piece.start]), int(offsets[piece.stop])
                plan = self._plan(np.diff(offsets[piece.start : piece.stop + 1]))
                begins = offsets[piece.start : piece.stop][plan.order] - first
                yield (piece, plan), (narrow(values[first:last]), begins, plan.lengths)

        def keep(key: tuple[slice, _Plan], results: Arrays) -> None:
            piece, plan = key
            logits[piece][plan.order] = results[0]
            weights[offsets[piece.start] : offsets[piece.stop]] = results[1]

        transfers = Transfers(self.device, self._forward, keep)
        if self.device == "cpu":
            transfers.run(pieces())
        else:
            # In the caller's context: Prefect finds by it which run a warning belongs to.
            self._workers.submit(copy_context().run, transfers.run, pieces()).result()
        return logits, weights

    def _plan(self, lengths: npt.NDArray[np.int64]) -> _Plan:
        batches = list(
            plan_batches(
                lengths,
                max_tokens=MAX_TOKENS[self.device],
                max_rows=MAX_ROWS[self.device],
                min_rows=MIN_ROWS[self.device],
            )
        )
        ends = np.cumsum([len(rows) for rows in batches])
        order = np.concatenate(batches)
        slices = [slice(int(end) - len(rows), int(end)) for rows, end in zip(batches, ends, strict=True)]
        return _Plan(order, lengths[order], slices)

    def _forward(
        self, key: tuple[slice, _Plan], tokens: Tensor, begins: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits, longest row first, and attention weights of a piece: on the device, without waiting for it."""
        _, plan = key
        rows = _Rows(
            tokens,
            begins,
            lengths,
            torch.empty(len(begins), self._network.config.num_classes, device=tokens.device),
            torch.empty(len(tokens) + 1, device=tokens.device),
        )

        def forward(batch: slice) -> None:
            with torch.inference_mode():
                self._forward_batch(rows, plan.lengths, batch)

        if self.device == "cpu":
            # The list runs the threads to the end; a failure in one is raised here.
            list(self._workers.map(forward, plan.batches))
        else:
            for batch in plan.batches:
                forward(batch)
        return rows.logits, rows.weights[:-1]

    def _forward_batch(self, rows: _Rows, lengths: npt.NDArray[np.int64], batch: slice) -> None:
        """One batch, or two halves of it where memory does not hold it."""
        num_rows, longest = batch.stop - batch.start, int(lengths[batch.start])
        if num_rows == 1 and self.device == "cpu":
            self._refuse_too_long(longest)
        if num_rows == 1 or num_rows * longest <= self._most_tokens:
            try:
                self._compute(rows, batch, longest)
                return
            except torch.OutOfMemoryError as error:
                if num_rows == 1:
                    raise MemoryError(
                        f"a row of {longest:,} tokens does not fit in the GPU's memory; score it on a CPU, or limit "
                        "the length of rows (max_tokens)"
                    ) from error
            # Out of the except block, which keeps the failed pass's tensors alive.
            self._halve(num_rows * longest)
        middle = batch.start + num_rows // 2
        self._forward_batch(rows, lengths, slice(batch.start, middle))
        self._forward_batch(rows, lengths, slice(middle, batch.stop))

    def _refuse_too_long(self, num_tokens: int) -> None:
        needed = BYTES_BY_HIDDEN_SIZE * self._network.config.hidden_size * num_tokens
        there = memory_bytes()
        if needed > there:
            raise MemoryError(
                f"a row of {num_tokens:,} tokens takes the torch engine about {needed / 1e9:.1f} GB, and there are "
                f"{there / 1e9:.1f}; limit the length of rows (max_tokens)"
            )

    def _halve(self, num_tokens: int) -> None:
        torch.cuda.empty_cache()
        with self._halving:
            if num_tokens // 2 < self._most_tokens:
                self._most_tokens = num_tokens // 2
                logger.warning(
                    "The GPU's memory does not hold a batch of %s tokens; from here on batches have at most %s.",
                    f"{num_tokens:,}",
                    f"{num_tokens // 2:,}",
                )

    def _compute(self, rows: _Rows, batch: slice, longest: int) -> None:
        """Pad a batch, run the network, and put the results where they belong. Nothing here waits for the device."""
        begins, lengths = rows.begins[batch, None], rows.lengths[batch]
        step = torch.arange(longest, device=begins.device)
        is_token = step < lengths[:, None]
        at = begins + step.clamp(max=lengths[:, None] - 1)
        token_ids = rows.tokens[at].int().masked_fill_(~is_token, self._network.config.padding_id)
        if self._layers is None:
            logits, weights = self._network(token_ids, lengths)
        else:
            offsets = np.concatenate(([0], np.cumsum(lengths.numpy())))
            states = torch.zeros(*is_token.shape, 2 * self._network.config.hidden_size)
            states[is_token] = torch.from_numpy(self._layers.states(token_ids[is_token].numpy(), offsets))
            context, weights = self._network.pool(states, is_token)
            of_ngrams = self._network.embed_ngrams(token_ids) if self._network.config.longest_ngram > 1 else None
            logits = self._network.classify(context, of_ngrams, is_token)
        rows.logits[batch] = logits
        rows.weights.scatter_(0, at.masked_fill_(~is_token, len(rows.tokens)).flatten(), weights.flatten())


def _fused_layers(network: AttentionLSTM, device: str, precision: Precision) -> "FusedLayers | None":
    """The LSTM layers of a multihead network as the fused engine computes them, where it can."""
    # A network of one's own may compute something else.
    if type(network) is not AttentionLSTM or network.config.attention != "multihead":
        return None
    if device != "cpu" or precision != "float32" or layers_fit(network.config) is not None:
        return None
    from attnlstm.engines.fused_cpu.layers import FusedLayers

    return FusedLayers(network)


def _copy(network: AttentionLSTM, dtype: torch.dtype) -> AttentionLSTM:
    """The network in evaluation mode, float32 save for its embedding and LSTM, which are of this dtype."""
    copied = copy.deepcopy(network).eval().float()
    if dtype != torch.float32:
        copied.embedding.to(dtype)
        copied.sequence.to(dtype)
        # From here on float32 again, whichever pooling it is.
        pool = copied.pool
        copied.pool = lambda states, mask: pool(states.float(), mask)  # type: ignore[method-assign]
    return copied


def _dtype(precision: Precision, device: str) -> torch.dtype:
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if precision not in dtypes:
        raise ValueError(f"precision must be one of {', '.join(dtypes)}, not {precision!r}")
    if device == "cpu" and precision == "float16":
        raise ValueError("precision float16 is for CUDA devices; on a CPU take bfloat16 or float32")
    if device == "cpu" and precision == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise ValueError("this processor has no instructions for bfloat16, which would be slower; take float32")
    return dtypes[precision]


def resolve_device(device: Device) -> str:
    """ "cpu" or "cuda". Raises ValueError if the device is not there."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', not {device!r}")
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ValueError("device is 'cuda', but torch finds no CUDA device here; use 'auto' or 'cpu'")
    if device == "cpu" or not has_cuda:
        return "cpu"
    # Each direction of a layer is a call of its own, so cuDNN packs a few KB of weights each time and warns
    # of it.
    warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
    # cuDNN computes LSTMs in TF32 unless told otherwise (pytorch#179445); probabilities are to agree with
    # the CPU's.
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]
    return "cuda"
