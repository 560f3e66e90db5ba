"""Mixture of experts: which experts each row goes to, pairs of row and expert in the order of experts, and the experts.

A pair p of K for each row is of row p // K. Blocks of BLOCK_R pairs are of one expert each; `order` names the pairs of a block,
-1 where it has fewer, and `owners` the block's expert, -1 where there is no such block. Of experts that ranks share out,
`numbers`[E] says which these are: from its first entry on. Pairs of others are in no block. It is None where all are here.
"""

import triton
import triton.language as tl

from .dependence import let_next_begin, wait_for_inputs
from .elementary import activated, sigmoid


@triton.jit
def _best_of(values, numbers, E: tl.constexpr):
    """The largest value and its first place."""
    best = tl.max(values, axis=0)
    return best, tl.min(tl.where(values == best, numbers, E), axis=0)


@triton.jit
def _store_ranked(
    choice, scores, numbers, inside, indices, weights,
    K: tl.constexpr, SCORING: tl.constexpr, NORMALIZE: tl.constexpr, SCALE: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The K experts of the highest `choice`, the first of equals, and their weights, at one row's places."""
    # what is no number comes last, so that every place is filled; its score stays none
    choice = tl.where(choice == choice, choice, float("-inf"))
    others = tl.arange(0, BLOCK_E)
    # down the columns, so that a thread adds up what it has itself
    ahead = (choice[:, None] > choice[None, :]) | ((choice[:, None] == choice[None, :]) & (others[:, None] < numbers[None, :]))
    rank = tl.sum(ahead.to(tl.int32), axis=0)
    taken = inside & (rank < K)
    found = scores
    if SCORING == "softmax_selected":
        shifted = tl.where(taken, found, float("-inf"))
        powers = tl.exp(shifted - tl.max(shifted, axis=0))
        found = powers / tl.sum(powers, axis=0)
    if NORMALIZE:
        found = found / tl.sum(tl.where(taken, found, 0.0), axis=0)
    tl.store(indices + rank, numbers, mask=taken)
    tl.store(weights + rank, (found * SCALE).to(weights.dtype.element_ty), mask=taken)


@triton.jit
def route(
    logits, bias, indices, weights,
    E: tl.constexpr, ROW: tl.constexpr, K: tl.constexpr, SCORING: tl.constexpr, NORMALIZE: tl.constexpr, SCALE: tl.constexpr,
    GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, GROUP_BEST: tl.constexpr, RANKED: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_G: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """logits[R, E] -> the K experts of each row and their weights; bias[E] may be None. Grid: rows.

    RANKED, without groups: all experts are compared with all others at once, instead of one after another being found.
    """
    row = tl.program_id(0).to(tl.int64)
    numbers, places = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    inside = numbers < E
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    values = tl.load(logits + row * ROW + numbers, mask=inside, other=float("-inf")).to(tl.float32)
    if SCORING == "sigmoid":
        scores = sigmoid(values)
    elif SCORING == "softmax":
        powers = tl.exp(values - tl.max(values, axis=0))
        scores = powers / tl.sum(powers, axis=0)
    else:
        scores = values
    choice = scores
    if bias is not None:
        choice += tl.load(bias + numbers, mask=inside, other=0.0).to(tl.float32)
    choice = tl.where(inside, choice, float("-inf"))
    if RANKED:
        _store_ranked(
            choice, scores, numbers, inside, indices + row * K, weights + row * K, K, SCORING, NORMALIZE, SCALE, BLOCK_E
        )
        return
    if GROUPS > 1:
        group = numbers // (E // GROUPS)
        of_groups = tl.arange(0, BLOCK_G)
        judged = tl.full((BLOCK_G,), float("-inf"), tl.float32)
        for number in tl.static_range(GROUPS):
            members = tl.where(group == number, choice, float("-inf"))
            total = tl.sum(tl.zeros((BLOCK_E,), tl.float32), axis=0)
            for _ in tl.static_range(GROUP_BEST):
                best, at = _best_of(members, numbers, E)
                members = tl.where(numbers == at, float("-inf"), members)
                total += best
            judged = tl.where(of_groups == number, total, judged)
        kept = numbers < 0
        for _ in tl.static_range(TOP_GROUPS):
            best, at = _best_of(judged, of_groups, GROUPS)
            judged = tl.where(of_groups == at, float("-inf"), judged)
            kept = kept | (group == at)
        choice = tl.where(kept, choice, float("-inf"))
    chosen, found = tl.zeros((BLOCK_K,), tl.int32), tl.zeros((BLOCK_K,), tl.float32)
    for place in tl.static_range(K):
        best, at = _best_of(choice, numbers, E)
        score = tl.sum(tl.where(numbers == at, scores, 0.0), axis=0)
        choice = tl.where(numbers == at, float("-inf"), choice)
        chosen = tl.where(places == place, at, chosen)
        found = tl.where(places == place, score, found)
    if SCORING == "softmax_selected":
        shifted = tl.where(places < K, found, float("-inf"))
        powers = tl.exp(shifted - tl.max(shifted, axis=0))
        found = powers / tl.sum(powers, axis=0)
    if NORMALIZE:
        found = found / tl.sum(found, axis=0)
    start = row * K + places
    tl.store(indices + start, chosen, mask=places < K)
    tl.store(weights + start, (found * SCALE).to(weights.dtype.element_ty), mask=places < K)


@triton.jit
def _first_of(numbers):
    if numbers is None:
        return 0
    else:
        return tl.load(numbers)


@triton.jit
def count(indices, numbers, sizes, rows, K: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    """How many pairs each expert has. Grid: experts."""
    expert = tl.program_id(0)
    number = expert + _first_of(numbers)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    total = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, rows * K, BLOCK):
        pairs = start + tl.arange(0, BLOCK)
        total += (tl.load(indices + pairs, mask=pairs < rows * K, other=-1) == number).to(tl.int32)
    tl.store(sizes + expert, tl.sum(total, axis=0))


@triton.jit
def arrange(
    indices, numbers, sizes, order, owners, rows, blocks,
    E: tl.constexpr, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The pairs of each expert into its blocks, which follow those of the experts before. Grid: experts, and one that marks the
    blocks that are left."""
    expert = tl.program_id(0)
    others, places = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK)
    number = expert + _first_of(numbers)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    of_expert = tl.cdiv(tl.load(sizes + others, mask=others < E, other=0), BLOCK_R)
    first = tl.sum(tl.where(others < expert, of_expert, 0), axis=0)
    if expert == E:
        for start in range(first, blocks, BLOCK):
            tl.store(owners + start + places, -1, mask=start + places < blocks)
    else:
        mine = tl.sum(tl.where(others == expert, of_expert, 0), axis=0)
        for start in range(0, mine, BLOCK):
            tl.store(owners + first + start + places, expert, mask=start + places < mine)
        done = first * BLOCK_R
        for start in range(0, rows * K, BLOCK):
            pairs = start + places
            taken = (tl.load(indices + pairs, mask=pairs < rows * K, other=-1) == number).to(tl.int32)
            tl.store(order + done + tl.cumsum(taken, axis=0) - 1, pairs, mask=taken != 0)
            done += tl.sum(taken, axis=0)
        stop = (first + mine) * BLOCK_R
        for start in range(done, stop, BLOCK):
            tl.store(order + start + places, -1, mask=start + places < stop)


@triton.jit
def gated_pair(gate, up, DTYPE: tl.constexpr, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr):
    """activation(gate) * up in f32, of products that are rounded first."""
    gate, up = gate.to(DTYPE).to(tl.float32), up.to(DTYPE).to(tl.float32)
    if ACTIVATION == "swiglu_clamped":
        gate = tl.minimum(gate, LIMIT)
        made = gate * sigmoid(gate * ALPHA) * (tl.minimum(tl.maximum(up, -LIMIT), LIMIT) + 1.0)
    else:
        made = activated(gate, ACTIVATION).to(DTYPE).to(tl.float32) * up
    return made


@triton.jit
def gate_up(
    x, weight, bias, order, owners, out,
    INNER: tl.constexpr, H: tl.constexpr, K: tl.constexpr, X_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """activation(gate) * up of each pair, into out[pairs, INNER]; weight[E, 2 INNER, H], bias[E, 2 INNER] or None.

    Grid: blocks of INNER, blocks of pairs.
    """
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    block = tl.program_id(1)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    expert = tl.load(owners + block).to(tl.int64)
    if expert < 0:
        return
    pairs = tl.load(order + block * BLOCK_R + tl.arange(0, BLOCK_R))
    present, inside, inner = pairs >= 0, columns < INNER, tl.arange(0, BLOCK_K)
    source = x + (tl.maximum(pairs, 0) // K).to(tl.int64)[:, None] * X_ROW + inner[None, :]
    gates = weight + (expert * (2 * INNER) + columns)[None, :] * H + inner[:, None]
    ups = gates + INNER * H
    gate, up = tl.zeros((BLOCK_R, BLOCK_N), tl.float32), tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    for start in tl.range(0, H, BLOCK_K, num_stages=STAGES):
        left = start + inner < H
        mask = inside[None, :] & left[:, None]
        v = tl.load(source + start, mask=present[:, None] & left[None, :], other=0.0)
        gate = tl.dot(v, tl.load(gates + start, mask=mask, other=0.0), gate, input_precision="ieee")
        up = tl.dot(v, tl.load(ups + start, mask=mask, other=0.0), up, input_precision="ieee")
    dtype = out.dtype.element_ty
    if bias is not None:
        start = bias + expert * (2 * INNER) + columns
        gate += tl.load(start, mask=inside, other=0.0).to(tl.float32)[None, :]
        up += tl.load(start + INNER, mask=inside, other=0.0).to(tl.float32)[None, :]
    made = gated_pair(gate, up, dtype, ACTIVATION, ALPHA, LIMIT)
    target = out + tl.maximum(pairs, 0).to(tl.int64)[:, None] * INNER + columns[None, :]
    tl.store(target, made.to(dtype), mask=present[:, None] & inside[None, :])


@triton.jit
def down(
    x, weight, bias, order, owners, out,
    INNER: tl.constexpr, H: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """What each pair's expert makes of x[pairs, INNER], into out[pairs, H]; weight[E, H, INNER], bias[E, H] or None.

    Grid: blocks of H, blocks of pairs.
    """
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    block = tl.program_id(1)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    expert = tl.load(owners + block).to(tl.int64)
    if expert < 0:
        return
    pairs = tl.load(order + block * BLOCK_R + tl.arange(0, BLOCK_R))
    present, inside, inner = pairs >= 0, columns < H, tl.arange(0, BLOCK_K)
    kept = tl.maximum(pairs, 0).to(tl.int64)
    source = x + kept[:, None] * INNER + inner[None, :]
    weights = weight + (expert * H + columns)[None, :] * INNER + inner[:, None]
    sums = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    for start in tl.range(0, INNER, BLOCK_K, num_stages=STAGES):
        left = start + inner < INNER
        v = tl.load(source + start, mask=present[:, None] & left[None, :], other=0.0)
        w = tl.load(weights + start, mask=inside[None, :] & left[:, None], other=0.0)
        sums = tl.dot(v, w, sums, input_precision="ieee")
    if bias is not None:
        sums += tl.load(bias + expert * H + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    target = out + kept[:, None] * H + columns[None, :]
    tl.store(target, sums.to(out.dtype.element_ty), mask=present[:, None] & inside[None, :])


@triton.jit
def combine(
    results, weights, indices, numbers, out,
    E: tl.constexpr, H: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[row] = the sum over the row's pairs of weight * result, in f32, of pairs that have one. Grid: rows, blocks of H."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < H
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    total = tl.zeros((BLOCK,), tl.float32)
    for place in tl.static_range(K):
        pair = row * K + place
        present = inside
        if numbers is not None:
            expert = tl.load(indices + pair) - tl.load(numbers)
            present = columns < tl.where((expert >= 0) & (expert < E), H, 0)
        made = tl.load(results + pair * H + columns, mask=present, other=0.0).to(tl.float32)
        total += made * tl.load(weights + pair).to(tl.float32)
    tl.store(out + row * H + columns, total.to(out.dtype.element_ty), mask=inside)
