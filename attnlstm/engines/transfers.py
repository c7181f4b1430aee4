"""Pieces of work to a device and their results back, so that a CUDA device computes while both are copied.

Owns streams, pinned memory and the order of the stages. Knows nothing about what is computed. On a CPU there is
nothing to copy, and the stages simply follow each other.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Key = TypeVar("Key")
Arrays = tuple[npt.NDArray[Any], ...]
Tensors = tuple[Tensor, ...]

CALLS_AT_ONCE = 2
"""Threads that run transfers on one device: while one's last results are copied, the other's pieces compute."""

IN_FLIGHT = 2
"""Pieces at once: one computes while another's results are copied and put in their place and a third is made."""


class _Started(NamedTuple, Generic[Key]):
    """A piece on its way. Its tensors are held until its results have arrived: each belongs to the stream that it
    was made on, which would hand its memory out again while another stream still reads it."""

    key: Key
    on_device: tuple[Tensors, Tensors]
    results: Tensors
    arrived: torch.cuda.Event | None


class Transfers(Generic[Key]):
    """Three stages for each piece: inputs to the device, computation, results back. One thread uses an instance.

    device: "cpu" or "cuda"; on the latter each thread has streams of its own. compute: from a piece's key and
    its inputs, on the device, to its results there. keep: gets the key and the results as arrays of its own, in the
    order of the pieces.
    """

    def __init__(self, device: str, compute: Callable[..., Tensors], keep: Callable[[Key, Arrays], None]) -> None:
        self._compute = compute
        self._keep = keep
        self._device = device

    def run(self, pieces: Iterable[tuple[Key, Arrays]]) -> None:
        """Compute every piece and keep all results. Pieces are drawn while earlier ones compute."""
        started: deque[_Started[Key]] = deque()
        for key, arrays in pieces:
            started.append(self._start(key, arrays))
            if len(started) == IN_FLIGHT:
                self._finish(started.popleft())
        for each in started:
            self._finish(each)

    def _start(self, key: Key, arrays: Arrays) -> _Started[Key]:
        if self._device == "cpu":
            inputs = tuple(_host_copy(array, pinned=False) for array in arrays)
            results = self._compute(key, *inputs)
            return _Started(key, (inputs, results), results, None)
        inward, computing, outward = _streams()
        with torch.cuda.stream(inward):
            inputs = tuple(_host_copy(array, pinned=True).to("cuda", non_blocking=True) for array in arrays)
        computing.wait_stream(inward)
        with torch.cuda.stream(computing):
            results = self._compute(key, *inputs)
        outward.wait_stream(computing)
        with torch.cuda.stream(outward):
            copies = tuple(torch.empty(result.shape, dtype=result.dtype, pin_memory=True) for result in results)
            for copy, result in zip(copies, results, strict=True):
                copy.copy_(result, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(outward)
        return _Started(key, (inputs, results), copies, arrived)

    def _finish(self, piece: _Started[Key]) -> None:
        if piece.arrived is not None:
            piece.arrived.synchronize()
        self._keep(piece.key, tuple(result.numpy() for result in piece.results))


def narrow(values: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """Token ids in the fewest bytes that every operation on a device takes: uint8 as they are, or int32."""
    return values if values.dtype == np.uint8 else values.astype(np.int32)


_of_thread = threading.local()


def _streams() -> list[torch.cuda.Stream]:
    """This thread's three streams, always the same: torch keeps memory that was freed for the stream it was made on."""
    if not hasattr(_of_thread, "streams"):
        _of_thread.streams = [torch.cuda.Stream() for _ in range(3)]  # type: ignore[no-untyped-call]
    streams: list[torch.cuda.Stream] = _of_thread.streams
    return streams


def _host_copy(array: npt.NDArray[Any], *, pinned: bool) -> Tensor:
    """The array as a tensor of its own: arrays from Arrow are read-only, which tensors can't be. Only from pinned
    memory does a copy to a device leave the processor free."""
    if not pinned:
        return torch.from_numpy(np.array(array))
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    tensor = torch.empty(array.shape, dtype=dtype, pin_memory=True)
    tensor.numpy()[...] = array
    return tensor
