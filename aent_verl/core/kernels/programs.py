r"""Device programs of `token_entropy`: what `aent_verl.core.rows` computes, one row of logits per program.

Sums are kept in fp32 per lane (``[BLOCK]``) and added up once, at the end of a row. That and the few operations that
follow are in fp64, which costs nothing there and makes up for what the GPU's exponential lacks in accuracy. One token
of the largest logit is left out of the lanes: next to its 1, fp32 has no room for what the others add to a peaked row.

*Exponentials.* ``x = (l - max l) * scale`` is floored where ``exp(x)`` is 0 in fp32, so that ``x exp(x)`` is 0 for a
logit of ``-inf`` without a comparison. The floor lets NaN pass. Lanes beyond the vocabulary hold ``-inf``.

*Radix selection.* Which logits are the smallest is decided on unsigned keys in the logits' order and own width, eight
bits at a time from the top: a histogram of one digit over the logits that share the boundary's higher digits tells the
boundary's next digit. In the histogram of the lowest digit each bin is one value, so that the sums over all logits
near the boundary follow from the 256 counts.
"""

# Triton types its language only in part; what is typed here is what a caller in Python sees.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

# exp(-126) is 0 in fp32, also with subnormal numbers.
_FLOOR = tl.constexpr(-126.0)
_LOWEST_INT32 = tl.constexpr(-0x80000000)
_LOWEST_FP32 = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _floored(x):
    """Compute ``max(x, -126)``, which keeps NaN."""
    return tl.maximum(x, _FLOOR, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _scale_of(scale, row):
    """Load the inverse temperature of the row; 1 without one."""
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale + row)
    return factor


@triton.jit
def _weights(values, threshold, share):
    """Give 1 above the boundary, the share on it, 0 below."""
    return tl.where(values > threshold, 1.0, tl.where(values == threshold, share, 0.0))


@triton.jit
def _keys(values):
    """Map floats to unsigned numbers of the same order, in the floats' own width; equal for both zeros."""
    if values.dtype == tl.float32:
        bits = values.to(tl.int32, bitcast=True)
        keys = tl.where(bits < 0, 0 - bits, bits - _LOWEST_INT32)
    else:
        bits = values.to(tl.int16, bitcast=True).to(tl.int32)
        keys = tl.where(bits < 0, 0 - bits, bits + 0x8000)
    return keys.to(tl.uint32, bitcast=True)


@triton.jit
def _values(keys, dtype: tl.constexpr):
    """Invert `_keys`, in fp32."""
    bits = keys.to(tl.int32, bitcast=True)
    if dtype == tl.float32:
        # Negative floats have the keys below 0x80000000, which are the positive numbers of int32.
        values = tl.where(bits > 0, 0 - bits, bits - _LOWEST_INT32).to(tl.float32, bitcast=True)
    else:
        bits = tl.where(bits < 0x8000, 0 - bits, bits - 0x8000)
        values = bits.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
    return values


@triton.jit
def _next_digit(counts, bins, rank):
    """Find the digit of the ``rank``-th smallest (from 1), and its rank among those with this digit."""
    digit = tl.sum((tl.cumsum(counts, 0) < rank).to(tl.int32), 0)
    return digit, rank - tl.sum(tl.where(bins < digit, counts, 0), 0)


@triton.jit
def _log1p(x):
    """Compute ``log(1 + x)`` in fp64, to its last bits even where ``1 + x`` rounds most of ``x`` away (Kahan)."""
    one_and_x = 1.0 + x
    rounded = one_and_x - 1.0
    return tl.where(rounded == 0, x, tl.log(one_and_x) * (x / tl.where(rounded == 0, 1.0, rounded)))


@triton.jit
def _store_results(
    results, count, row, label, logits, vocabulary, scale, maximum, rest, kept_rest, kept_moment, gone, gone_moment,
    threshold, share, STATISTICS: tl.constexpr,
):  # fmt: skip
    """Write the six numbers of `rows.Rows` and the four of `rows.Forward` into column ``row`` of ``[10, count]``.

    ``gone`` is the sum of ``(1 - w) exp(x)``, the moments are those of ``w x exp(x)`` and ``(1 - w) x exp(x)``, in
    fp64. ``rest`` is NaN for a row that is not a distribution; all results then are.
    """
    nothing = (kept_rest == -1) & (rest >= 0)
    kept_rest = tl.where(rest >= 0, kept_rest, float("nan"))
    mean = tl.where(nothing, 0.0, kept_moment / tl.where(nothing, 1.0, 1.0 + kept_rest))
    entropy = tl.where(nothing, 0.0, _log1p(tl.where(nothing, 0.0, kept_rest)) - mean)
    # A label outside the vocabulary must not read elsewhere: NaN.
    label_logit = tl.load(logits + label, mask=(label >= 0) & (label < vocabulary), other=float("nan")).to(tl.float32)
    column = results + row
    tl.store(column, maximum)
    tl.store(column + count, rest.to(tl.float32))
    tl.store(column + 2 * count, kept_rest.to(tl.float32))
    tl.store(column + 3 * count, mean.to(tl.float32))
    tl.store(column + 4 * count, threshold)
    tl.store(column + 5 * count, share)
    tl.store(column + 6 * count, ((label_logit - maximum) * scale - _log1p(rest)).to(tl.float32))
    tl.store(column + 7 * count, entropy.to(tl.float32))
    if STATISTICS:
        full = _log1p(rest) - (kept_moment + gone_moment) / (1.0 + rest)
        tl.store(column + 8 * count, full.to(tl.float32))
        tl.store(column + 9 * count, (gone / (1.0 + rest)).to(tl.float32))
    else:
        tl.store(column + 8 * count, entropy.to(tl.float32))
        tl.store(column + 9 * count, tl.where(rest >= 0, 0.0, float("nan")))


@triton.jit
def _exp_without(x, top):
    """Compute ``exp(x)``, but 0 at the row's largest token: ``x`` is 0 there, or NaN, which stays, if infinite."""
    return tl.where(top, x, tl.exp(x))


@triton.jit
def _total(lanes):
    """Sum in fp64."""
    return tl.sum(lanes.to(tl.float64), 0)


@triton.jit
def _rescaled(total, moment, shift):
    """Shift all ``x`` by ``shift <= 0`` in sums of ``exp(x)`` and ``x exp(x)``: terms of one sign are added."""
    factor = tl.exp(shift)
    return factor * total, factor * (moment + shift * total)


@triton.jit(do_not_specialize=["count"])
def forward_in_one_read(
    logits, row_stride, vocabulary, labels, scale, thresholds, shares, results, count,
    STATISTICS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run the forward pass with every token kept (``thresholds`` None) or with given boundaries; grid ``(rows,)``."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    factor = _scale_of(scale, row)
    threshold, share = -float("inf"), 0.0
    if thresholds is not None:
        threshold, share = tl.load(thresholds + row), tl.load(shares + row)
    # Finite, so that blocks of only -inf do not make NaN of -inf - -inf.
    maximum = _LOWEST_FP32
    # Column of a token that has it, left out of the sums; none yet.
    top = -1
    lanes = tl.arange(0, BLOCK)
    kept = tl.zeros([BLOCK], tl.float32)
    kept_moment = tl.zeros([BLOCK], tl.float32)
    gone = tl.zeros([BLOCK], tl.float32)
    gone_moment = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        columns = start + lanes
        values = tl.load(logits + columns, mask=columns < vocabulary, other=-float("inf")).to(tl.float32)
        # A NaN may get lost in the maximum, but not in the sums.
        block_maximum = tl.max(values, 0)
        if (block_maximum > maximum) | ((top < 0) & (block_maximum == maximum)):
            # The token left out so far is one of the sums from now on; its x was 0.
            former = tl.where((lanes == 0) & (top >= 0), 1.0, 0.0)
            former_kept = former * _weights(maximum, threshold, share)
            shift = tl.maximum((maximum - block_maximum) * factor, _FLOOR)
            kept, kept_moment = _rescaled(kept + former_kept, kept_moment, shift)
            if thresholds is not None:
                gone, gone_moment = _rescaled(gone + (former - former_kept), gone_moment, shift)
            maximum = block_maximum
            top = tl.max(tl.where(values == maximum, columns, -1), 0)
        x = _floored((values - maximum) * factor)
        e = _exp_without(x, columns == top)
        if thresholds is None:
            kept += e
            kept_moment += e * x
        else:
            kept_e = _weights(values, threshold, share) * e
            kept += kept_e
            kept_moment += kept_e * x
            gone += e - kept_e
            gone_moment += (e - kept_e) * x
    # A row of NaN or -inf alone has no largest token, and is not a distribution.
    rest = tl.where(top >= 0, _total(kept) + _total(gone), float("nan"))
    weight = _weights(maximum, threshold, share)
    _store_results(
        results, count, row, tl.load(labels + row), logits, vocabulary, factor, maximum,
        rest, _total(kept) + (weight - 1.0), _total(kept_moment),
        _total(gone) + (1.0 - weight), _total(gone_moment), threshold, share, STATISTICS,
    )  # fmt: skip


@triton.jit
def _top_digit_and_maximum(logits, vocabulary, bins, rank, DIGITS: tl.constexpr, BLOCK: tl.constexpr):
    """Find the boundary's highest digit, its rank there, the largest logit and its last column, in one read."""
    counts = tl.zeros([256], tl.int32)
    maxima = tl.full([BLOCK], -float("inf"), tl.float32)
    places = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        values = tl.load(logits + columns, mask=inside, other=-float("inf"), eviction_policy="evict_last")
        places = tl.where(values.to(tl.float32) >= maxima, columns, places)
        maxima = tl.maximum(maxima, values.to(tl.float32))
        digits = (_keys(values) >> (8 * DIGITS - 8)).to(tl.int32)
        counts += tl.histogram(digits, 256, mask=inside)
    digit, rank = _next_digit(counts, bins, rank)
    maximum = tl.max(maxima, 0)
    return digit, rank, maximum, tl.max(tl.where(maxima == maximum, places, -1), 0)


@triton.jit
def _middle_digit(logits, vocabulary, bins, prefix, rank, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """Find the boundary's digit at bit ``SHIFT``, and its rank there, given the digits above, in one read."""
    counts = tl.zeros([256], tl.int32)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        values = tl.load(logits + columns, mask=inside, other=-float("inf"), eviction_policy="evict_last")
        keys = _keys(values) >> SHIFT
        counts += tl.histogram((keys & 255).to(tl.int32), 256, mask=inside & (keys >> 8 == prefix))
    return _next_digit(counts, bins, rank)


@triton.jit(do_not_specialize=["removed", "count"])
def forward_without_smallest(
    logits, row_stride, vocabulary, labels, scale, removed, results, count,
    DIGITS: tl.constexpr, STATISTICS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run it without the ``removed`` smallest logits, read ``DIGITS`` times (16 bits: 2); grid ``(rows,)``."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    factor = _scale_of(scale, row)
    bins = tl.arange(0, 256)
    digit, rank, maximum, top = _top_digit_and_maximum(logits, vocabulary, bins, removed, DIGITS, BLOCK)
    prefix = digit.to(tl.uint32)
    for i in tl.static_range(DIGITS - 2):
        digit, rank = _middle_digit(logits, vocabulary, bins, prefix, rank, 8 * (DIGITS - 2 - i), BLOCK)
        prefix = (prefix << 8) | digit.to(tl.uint32)

    counts = tl.zeros([256], tl.int32)
    kept = tl.zeros([BLOCK], tl.float32)
    kept_moment = tl.zeros([BLOCK], tl.float32)
    gone = tl.zeros([BLOCK], tl.float32)
    gone_moment = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        values = tl.load(logits + columns, mask=inside, other=-float("inf"), eviction_policy="evict_first")
        keys = _keys(values)
        counts += tl.histogram((keys & 255).to(tl.int32), 256, mask=inside & (keys >> 8 == prefix))
        x = _floored((values.to(tl.float32) - maximum) * factor)
        e = _exp_without(x, columns == top)
        kept_e = tl.where(keys >> 8 > prefix, e, 0.0)
        gone_e = tl.where(keys >> 8 < prefix, e, 0.0)
        kept += kept_e
        kept_moment += kept_e * x
        gone += gone_e
        gone_moment += gone_e * x

    # The logits that share all digits but the last: how many of each value there are, and how many of those are kept.
    digit, rank = _next_digit(counts, bins, rank)
    tied = tl.sum(tl.where(bins == digit, counts, 0), 0)
    kept_counts = tl.where(bins > digit, counts, tl.where(bins == digit, tied - rank, 0))
    near_values = _values((prefix << 8) | bins.to(tl.uint32), logits.dtype.element_ty)
    # Empty bins may stand for NaN or for values above the maximum.
    x = tl.where(counts > 0, _floored((near_values - maximum) * factor), 0.0)
    e = tl.exp(x)
    # The token left out, if it is one of these; the largest is never removed alone.
    kept_e = (kept_counts - (near_values == maximum).to(tl.int32)).to(tl.float32) * e
    gone_e = (counts - kept_counts).to(tl.float32) * e
    kept_rest = _total(kept) + _total(kept_e)
    gone_sum = _total(gone) + _total(gone_e)
    _store_results(
        results, count, row, tl.load(labels + row), logits, vocabulary, factor, maximum,
        kept_rest + gone_sum, kept_rest, _total(kept_moment) + _total(kept_e * x),
        gone_sum, _total(gone_moment) + _total(gone_e * x),
        tl.sum(tl.where(bins == digit, near_values, 0.0), 0),
        tl.div_rn((tied - rank).to(tl.float32), tied.to(tl.float32)), STATISTICS,
    )  # fmt: skip


@triton.jit
def backward(
    logits, row_stride, vocabulary, labels, scale,
    maximum, rest, kept_rest, mean, threshold, share,
    grad_log_probs, grad_entropy, out, out_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a block of a row; grid ``(rows * blocks of a row,)``. Elements are read before written.

    A gradient that comes as None costs nothing; where those of a row are 0, its logits are not read.
    """
    blocks = tl.cdiv(vocabulary, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    columns = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    g, h = 0.0, 0.0
    if grad_log_probs is not None:
        g = tl.load(grad_log_probs + row)
    if grad_entropy is not None:
        h = tl.load(grad_entropy + row)
    gradient = tl.zeros([BLOCK], tl.float32)
    if (g != 0) | (h != 0):
        factor = _scale_of(scale, row)
        values = tl.load(
            logits + row * row_stride + columns, mask=inside, other=-float("inf"), eviction_policy="evict_first"
        ).to(tl.float32)
        x = _floored((values - tl.load(maximum + row)) * factor)
        e = tl.exp(x)
        if grad_entropy is not None:
            # Where nothing is kept all weights are 0; the division must not make NaN of it.
            kept = 1.0 + tl.load(kept_rest + row)
            kept = tl.where(kept == 0, 1.0, kept)
            weights = _weights(values, tl.load(threshold + row), tl.load(share + row))
            gradient = weights * (x - tl.load(mean + row)) * (-h * factor / kept) * e
        if grad_log_probs is not None:
            others = tl.load(rest + row)
            label = columns == tl.load(labels + row)
            gradient += tl.where(label, others + (1.0 - e), -e) * (g * factor / (1.0 + others))
    tl.store(out + row * out_stride + columns, gradient.to(out.dtype.element_ty), mask=inside)


# False under Triton's interpreter, which takes tensors on the CPU.
COMPILED = isinstance(backward, triton.runtime.JITFunction)
