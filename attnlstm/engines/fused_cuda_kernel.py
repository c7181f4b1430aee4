"""The fused CUDA kernels, in Triton: one layer of the network over ragged rows, and attention pooling over them.

Owns the arithmetic and the order in which rows take their turns. Knows nothing about torch, copies or what the
context is for; `fused_cuda` prepares its inputs. It imports Triton: import it late. With TRITON_INTERPRET=1 set
by then, the kernels run on a CPU, which shows that they are right and nothing about their speed.

A program computes B rows side by side, each in a slot, in one direction. Their states stay in registers and the
weights near them; a row that ends makes room for the program's next one, so nothing is padded and a layer is one
launch, however long its rows are. What stands in other slots never reaches a row.

Shape letters: B slots of a program, H hidden size (padded), V vocabulary, N rows, T tokens of all rows.
"""

# mypy: ignore-errors
# Triton gives these functions their types when it compiles them; mypy can't follow.

import triton
import triton.language as tl

FOREVER: tl.constexpr = tl.constexpr(2**31 - 1)


@triton.jit
def _tanh(x):
    # Near 0 a sigmoid's difference would lose digits, which a cell may add up for many steps: a minimax fit there
    # keeps the relative error within 1.1e-7. NaN takes the other way and stays NaN.
    z = x * x
    fit = -0.33332947 + z * (0.13320725 + z * (-0.05267181 + z * 0.016437579))
    return tl.where(tl.abs(x) < 0.55, x + x * z * fit, 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0)


@triton.jit
def _load_gates(start, offsets, H: tl.constexpr):
    """Four tiles at start + offsets, one for each gate, which lie H floats apart."""
    return (
        tl.load(start + offsets),
        tl.load(start + offsets + H),
        tl.load(start + offsets + 2 * H),
        tl.load(start + offsets + 3 * H),
    )


@triton.jit
def _add_products(x, weights, sums, PRECISION: tl.constexpr):
    """The gates' sums (B, H), plus x (B, H) times the gates' matrices (H, H)."""
    return (
        tl.dot(x, weights[0], acc=sums[0], input_precision=PRECISION),
        tl.dot(x, weights[1], acc=sums[1], input_precision=PRECISION),
        tl.dot(x, weights[2], acc=sums[2], input_precision=PRECISION),
        tl.dot(x, weights[3], acc=sums[3], input_precision=PRECISION),
    )


@triton.jit
def _cell(sums, c):
    """One LSTM step from the gates' sums: new h and c."""
    i = 1.0 / (1.0 + tl.exp(-sums[0]))
    f = 1.0 / (1.0 + tl.exp(-sums[1]))
    o = 1.0 / (1.0 + tl.exp(-sums[3]))
    c = f * c + i * _tanh(sums[2])
    return o * _tanh(c), c


@triton.jit
def _take_rows(rank, at, left, h, c, begins, lengths, num_rows, num_slots, direction):
    """Slots whose row has ended take their next one, or idle with nothing left to do."""
    ended = (left == 0) & (rank < num_rows)
    rank = tl.where(ended, rank + num_slots, rank)
    taken = ended & (rank < num_rows)
    begin = tl.load(begins + rank, mask=taken, other=0)
    length = tl.load(lengths + rank, mask=taken, other=0)
    at = tl.where(taken, begin + direction * (length - 1), at)
    left = tl.where(taken, length, left)
    # Chosen, not multiplied: what an ended row leaves behind may be no number.
    h = tl.where(taken[:, None], 0.0, h)
    c = tl.where(taken[:, None], 0.0, c)
    num_steps = tl.min(tl.where(left > 0, left, FOREVER))  # until the first of the rows ends
    return rank, at, left, h, c, tl.where(num_steps == FOREVER, 0, num_steps)


@triton.jit
def _load_inputs(source, table, at, busy, unit, FROM_TOKENS: tl.constexpr, H: tl.constexpr):
    """What a step needs of the tokens at `at`: from the table, the gates' sums (B, H), or both directions' states."""
    if FROM_TOKENS:
        token = tl.load(source + at, mask=busy, other=0).to(tl.int64)
        return _load_gates(table, token[:, None] * (4 * H) + unit[None, :], H)
    else:
        offsets = at[:, None] * (2 * H) + unit[None, :]
        ahead = tl.load(source + offsets, mask=busy[:, None], other=0.0)
        return ahead, tl.load(source + offsets + H, mask=busy[:, None], other=0.0)


@triton.jit
def _input_sums(inputs, biases, from_ahead, from_back, FROM_TOKENS: tl.constexpr, PRECISION: tl.constexpr):
    """The gates' sums (B, H) before the recurrent part."""
    if FROM_TOKENS:
        return inputs
    else:
        sums = _add_products(inputs[0], from_ahead, biases, PRECISION)
        return _add_products(inputs[1], from_back, sums, PRECISION)


@triton.jit(do_not_specialize=["num_rows"])  # which would compile it again for 1, and for multiples of 16
def run_layer(
    source, above, begins, lengths, num_rows, input_weights, input_size, recurrents,
    FROM_TOKENS: tl.constexpr, B: tl.constexpr, H: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One layer over all rows: from `source` to states `above`, float32 (T, 2, H).

    source: tokens (T,) of any integer type for layer 0 (FROM_TOKENS), else the states of the layer below.
    begins: int64 (N,), where each row's tokens start; lengths: int32 (N,), how many they are, at least 1. A slot
    takes every num_slots-th row: with the longest first, slots end together.
    input_weights: float32, layer 0's table (2, V, 4, H) or else projections (2, 1 + 2 H, 4, H), biases first;
    input_size: how many floats of it a direction has. recurrents: float32 (2, H, 4, H).
    Grid: any number of programs, 2 directions. PRECISION: `tl.dot`'s input_precision.
    """
    direction = tl.program_id(1)
    stride = 1 - 2 * direction
    unit = tl.arange(0, H)
    square = unit[:, None] * (4 * H) + unit[None, :]
    input_weights += direction.to(tl.int64) * input_size
    recurrent = _load_gates(recurrents + direction * (4 * H * H), square, H)
    if FROM_TOKENS:
        biases = recurrent  # not looked at, as the next two
        from_ahead = recurrent
        from_back = recurrent
    else:
        biases = _load_gates(input_weights, tl.zeros((B, 1), tl.int32) + unit[None, :], H)
        from_ahead = _load_gates(input_weights + 4 * H, square, H)
        from_back = _load_gates(input_weights + 4 * H * (1 + H), square, H)

    num_slots = tl.num_programs(0) * B
    rank = tl.program_id(0) * B + tl.arange(0, B) - num_slots
    at = tl.zeros((B,), tl.int64)
    left = tl.zeros((B,), tl.int32)
    h = tl.zeros((B, H), tl.float32)
    c = tl.zeros((B, H), tl.float32)
    rank, at, left, h, c, num_steps = _take_rows(
        rank, at, left, h, c, begins, lengths, num_rows, num_slots, direction
    )  # fmt: skip
    while num_steps > 0:
        busy = left > 0
        inputs = _load_inputs(source, input_weights, at, busy, unit, FROM_TOKENS, H)
        for step in range(num_steps):
            to = above + at[:, None] * (2 * H) + direction * H + unit[None, :]
            at = tl.where(busy, at + stride, at)
            # The next step's inputs are on their way while this one computes.
            next_inputs = _load_inputs(source, input_weights, at, left > step + 1, unit, FROM_TOKENS, H)
            sums = _input_sums(inputs, biases, from_ahead, from_back, FROM_TOKENS, PRECISION)
            h, c = _cell(_add_products(h, recurrent, sums, PRECISION), c)
            tl.store(to, h, mask=busy[:, None])
            inputs = next_inputs
        left = tl.where(busy, left - num_steps, 0)
        rank, at, left, h, c, num_steps = _take_rows(
            rank, at, left, h, c, begins, lengths, num_rows, num_slots, direction
        )  # fmt: skip


@triton.jit
def pool(states, begins, lengths, score_weights, contexts, weights, STEPS: tl.constexpr, D: tl.constexpr):
    """Softmax attention over each row's states (T, D): its weights, and the sum of its states by weight.

    begins, lengths: (N,), as above, in any order. score_weights: float32 (D,).
    contexts: float64 (N, D), and weights: float32 (T,): the results. A program reads a row once, STEPS at a time,
    with a running maximum; sums over the blocks are float64, for a row may be long. Grid: N programs.
    """
    row = tl.program_id(0)
    begin = tl.load(begins + row)
    length = tl.load(lengths + row)
    feature = tl.arange(0, D)
    by = tl.load(score_weights + feature)
    highest = tl.full((), -float("inf"), tl.float32)
    total = tl.full((), 0.0, tl.float64)
    sums = tl.zeros((D,), tl.float64)
    for first in range(0, length, STEPS):
        step = first + tl.arange(0, STEPS)
        is_token = step < length
        at = begin + step
        x = tl.load(states + at[:, None] * D + feature[None, :], mask=is_token[:, None], other=0.0)
        score = tl.sum(x * by[None, :], axis=1)
        tl.store(weights + at, score, mask=is_token)
        score = tl.where(is_token, score, -float("inf"))
        higher = tl.maximum(highest, tl.max(score))
        shrink = tl.exp(highest - higher).to(tl.float64)  # exp(-inf) is 0
        weight = tl.exp(score - higher)
        total = total * shrink + tl.sum(weight).to(tl.float64)
        sums = sums * shrink + tl.sum(weight[:, None] * x, axis=0).to(tl.float64)
        highest = higher
    tl.store(contexts + row.to(tl.int64) * D + feature, sums / total)
    share = (1.0 / total).to(tl.float32)
    tl.debug_barrier()  # the scores are read by other threads of this program than wrote them
    for first in range(0, length, STEPS):
        step = first + tl.arange(0, STEPS)
        is_token = step < length
        score = tl.load(weights + begin + step, mask=is_token, other=0.0)
        tl.store(weights + begin + step, tl.exp(score - highest) * share, mask=is_token)
