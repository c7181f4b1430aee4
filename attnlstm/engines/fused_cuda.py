"""The engine for small networks on a CUDA device: the whole forward pass in a few launches over ragged rows.

Owns what is prepared for the kernels: which networks fit, scratch memory, pieces of a batch, sizes of launches.
Knows nothing about how one step is computed, which is `fused_cuda_kernel`'s, or how weights fold, which is
`folding`'s. Triton, which comes with torch's CUDA builds, is imported when an engine is made, not with this file.

Shape letters: H hidden size padded to a power of two, N rows, T tokens of all rows, C classes.
"""

import importlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attnlstm.batching import check_ragged, plan_pieces
from attnlstm.config import ModelConfig
from attnlstm.engines import Precision, Scores
from attnlstm.engines.folding import fold, fold_classifier, padded, weights_of
from attnlstm.engines.transfers import CALLS_AT_ONCE, Arrays, Transfers, narrow
from attnlstm.process import worker_threads

if TYPE_CHECKING:
    from attnlstm.network import AttentionLSTM

SMALLEST_HIDDEN_SIZE = 16
"""What smaller ones are padded to: the side of Triton's smallest product of matrices."""

LARGEST_HIDDEN_SIZE = 64
"""Three matrices of it for each gate, 192 KiB, are what a multiprocessor's shared memory holds."""

LARGEST_TABLE_BYTES = 1 << 28
"""Of the folded embedding, 256 MiB: 131,072 tokens at hidden size 64."""

ROWS_PER_PROGRAM = 16
"""The least that Triton's product of matrices takes. More would leave multiprocessors idle where rows are few."""

WARPS_PER_UNIT = 1 / 4
"""Of a program, by hidden size: a thread then has two units of each gate. With more, the LLVM of Triton 3.9 stops at
an assertion while it compiles the products for float32."""

PROGRAMS_PER_MULTIPROCESSOR = {16: 6, 32: 2, 64: 1}
"""That fit side by side, by hidden size, of the registers and the shared memory that compilers for compute
capability 9.0 give them."""

SCRATCH_BYTES = 1 << 31
"""Of the states of two layers, for a piece of the rows; each of CALLS_AT_ONCE calls has one. A row that is longer still
is a piece of its own."""

PRECISION = "ieee"
"""Of products: float32 throughout. "tf32x3" would use tensor cores, and is about as exact; it is not measured."""


def fits(config: ModelConfig, device: str) -> str | None:
    """None if this engine can run such a network on "cpu" or "cuda", otherwise why it can't."""
    if config.attention != "additive":
        return "multihead attention compares all pairs of tokens: matrix products, which torch is best at"
    if config.longest_ngram > 1:
        return "the network has embeddings of n-grams, which torch looks up"
    if config.hidden_size > LARGEST_HIDDEN_SIZE:
        return f"hidden_size is {config.hidden_size}; a GPU's nearest memory holds weights up to {LARGEST_HIDDEN_SIZE}"
    table_bytes = 2 * config.num_embeddings * 4 * padded(config.hidden_size, SMALLEST_HIDDEN_SIZE) * 4
    if table_bytes > LARGEST_TABLE_BYTES:
        return (
            f"num_embeddings is {config.num_embeddings}, which makes a folded table of {table_bytes >> 20} MiB; "
            f"at most {LARGEST_TABLE_BYTES >> 20} are used"
        )
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton, which comes with torch's CUDA builds, can't be imported ({error})"
    if device != "cuda" and not _is_interpreted():
        return "it computes on a CUDA device, and this is a CPU"
    return None


class FusedCudaEngine:
    """A network's weights, folded for the kernels. Later changes to the network don't reach them.

    network: stays the caller's. A row's results do not depend on the rows beside it. By construction they are as
    close to float64 as the CPU's fused engine; what a GPU's own rounding of exp and of divisions adds is not
    measured. Pieces of the rows are copied, computed and copied back side by side.
    Memory on the device: 16 * H + 5 bytes a token of a piece (8 * H + 5 if there is one layer), and the table.

    The first engine of a size on a machine compiles for some seconds; Triton keeps what it compiled in its cache.
    With TRITON_INTERPRET=1 in the environment before the first one is made, the kernels run on the CPU, far slower.
    Raises ValueError if the network does not fit, or the device has too little shared memory for its size.
    """

    name = "fused-cuda"
    precision: Precision = "float32"

    def __init__(self, network: "AttentionLSTM") -> None:
        config = network.config
        self.device = "cpu" if _is_interpreted() else "cuda"
        reason = fits(config, self.device)
        if reason is not None:
            raise ValueError(f"the {self.name} engine can't run this network: {reason}")
        self._kernel = importlib.import_module("attnlstm.engines.fused_cuda_kernel")
        self._config = config
        self._hidden_size = H = padded(config.hidden_size, SMALLEST_HIDDEN_SIZE)
        self._most_programs = PROGRAMS_PER_MULTIPROCESSOR[H] * _num_multiprocessors(self.device) // 2
        weights = weights_of(network)
        folded = fold(weights, config, H, sigmoid_scale=1.0)
        self._table, self._projections, self._recurrents, self._score = (
            torch.from_numpy(matrix.astype(np.float32)).to(self.device) for matrix in folded[:4]
        )
        self._classifier = tuple(
            torch.from_numpy(matrix).to(self.device) for matrix in fold_classifier(weights, config, H)
        )
        self._workers = worker_threads(CALLS_AT_ONCE, self.name)
        self._compile()

    def score(self, values: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64]) -> Scores:
        """See `Engine.score`."""
        check_ragged(values, offsets, self._config.padding_id)
        offsets = offsets.astype(np.int64, copy=False)
        probabilities = np.empty((len(offsets) - 1, self._config.num_classes), np.float32)
        attention_weights = np.empty(len(values), np.float32)

        def pieces() -> Iterator[tuple[slice, Arrays]]:
            for piece in plan_pieces(offsets, SCRATCH_BYTES // (16 * self._hidden_size)):
                first, last = int(offsets[piece.start]), int(offsets[piece.stop])
                lengths = np.diff(offsets[piece.start : piece.stop + 1])
                order = np.argsort(-lengths, kind="stable")
                begins = offsets[piece][order] - first
                yield piece, (narrow(values[first:last]), begins, lengths[order].astype(np.int32), order)

        def keep(piece: slice, results: Arrays) -> None:
            probabilities[piece] = results[0]
            attention_weights[offsets[piece.start] : offsets[piece.stop]] = results[1]

        self._workers.submit(Transfers(self.device, self._forward, keep).run, pieces()).result()
        return Scores(probabilities, attention_weights)

    def _forward(
        self, _: slice, tokens: Tensor, begins: Tensor, lengths: Tensor, order: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Probabilities (N, C) and attention weights (T,) of a piece, whose rows are given longest first.

        tokens: uint8 or int32 (T,). begins: int64 (N,). lengths: int32 (N,). order: int64 (N,), where each row was.
        """
        H, L = self._hidden_size, self._config.num_layers
        N, T = len(begins), len(tokens)
        num_warps = int(H * WARPS_PER_UNIT)
        grid = (max(1, min(-(-N // ROWS_PER_PROGRAM), self._most_programs)), 2)
        states = torch.empty(min(L, 2), T, 2, H, device=self.device)
        for layer in range(L):
            inputs = self._projections[layer - 1] if layer else self._table
            self._kernel.run_layer[grid](
                states[(layer - 1) % 2] if layer else tokens, states[layer % 2], begins, lengths, N,
                inputs, inputs[0].numel(), self._recurrents[layer],
                FROM_TOKENS=layer == 0, B=ROWS_PER_PROGRAM, H=H, PRECISION=PRECISION,
                num_warps=num_warps, num_stages=1, enable_fp_fusion=True,
            )  # fmt: skip
        contexts = torch.empty(N, 2 * H, dtype=torch.float64, device=self.device)
        weights = torch.empty(T, device=self.device)
        self._kernel.pool[(N,)](
            states[(L - 1) % 2], begins, lengths, self._score, contexts, weights,
            STEPS=1024 // H, D=2 * H, num_warps=4, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
        hidden_weights, hidden_biases, class_weights, class_biases = self._classifier
        logits = (contexts @ hidden_weights + hidden_biases).relu() @ class_weights + class_biases
        probabilities = torch.empty_like(logits, dtype=torch.float32)
        probabilities[order] = logits.softmax(-1).float()
        return probabilities, weights

    def _compile(self) -> None:
        """Score one row, so that what a device can't run is known now."""
        from triton.runtime.errors import OutOfResources

        try:
            self.score(np.zeros(1, np.uint8), np.array([0, 1]))
        except OutOfResources as error:
            raise ValueError(
                f"the {self.name} engine can't run this network: for hidden_size {self._config.hidden_size} this GPU "
                f"has too little ({error}); take 'torch'"
            ) from error


def _is_interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU, which it decides when it reads them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _num_multiprocessors(device: str) -> int:
    return (
        torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count if device == "cuda" else 2
    )
