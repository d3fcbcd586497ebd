"""Where the axes of a plot have ticks, and where its labels go. plot.html does the same in JavaScript."""

import math


def value_range(values, log):
    """(low, high) of what is to be drawn, with some room; None without values. `log`: only those above 0 count.

    A constant gets 5 % of its value as room.
    """
    values = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not values:
        return None
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < 1e-290:
        room = 0.5 if size < 1e-290 else 0.05 * size
    elif log:
        factor = 10 ** min(1, 0.04 * (math.log10(high) - math.log10(low)))
        return low / factor, high * factor
    else:
        room = 0.04 * (high - low)
    return low - room, high + room


def linear_ticks(low, high, most, whole=False):
    """The multiples of 1, 2 or 5 x 10^k in [low, high], at most `most` steps; `whole`: of whole numbers only."""
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    fitting = [m * unit for m in (1, 2, 5, 10) if (high - low) / (m * unit) <= most and (m * unit >= 1 or not whole)]
    step = fitting[0] if fitting else max(1, 10 * unit)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def log_ticks(low, high, most):
    """The same for a log scale: powers of ten, or a few in each decade. Within less than a decade: as on a linear
    scale."""
    first, last = math.log10(low) - 1e-9, math.log10(high) + 1e-9
    every = math.ceil((last - first) / most)
    for parts in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        powers = [e for e in range(math.floor(first), math.floor(last) + 1) if e % every == 0]
        ticks = [value for e in powers for value in (float(f"{m}e{e}") for m in parts)
                 if value > 0 and first <= math.log10(value) <= last]  # fmt: skip
        if len(ticks) >= 4:
            return ticks
    return linear_ticks(low, high, most)


def tick_labels(ticks):
    """One text per tick, exact, so that no two are the same.

    >>> tick_labels([0.5, 1, 1.5]), tick_labels([9.8e-5, 1e-4, 1.02e-4]), tick_labels([0, 20000, 40000])
    (['0.5', '1.0', '1.5'], ['9.8e-5', '1e-4', '1.02e-4'], ['0', '20k', '40k'])
    """
    sizes = [abs(value) for value in ticks if value]
    top, least = max(sizes, default=0), min(sizes, default=math.inf)
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if 10 * unit <= top < 1e10 and all(value % (unit / 10) == 0 for value in ticks):
            return ["0" if value == 0 else _shortest(value / unit) + letter for value in ticks]
    if top >= 1e10 or top < 1e-2 or least < 1e-4 or top / least > 1e6:
        return list(map(_scientific, ticks))
    if top / least > 20:
        return list(map(_shortest, ticks))
    digits = max(len(_shortest(value).partition(".")[2]) for value in ticks)
    return [f"{value + 0.0:,.{digits}f}" for value in ticks]


def _shortest(value):
    whole, _, decimals = repr(abs(float(f"{value:.12g}"))).partition(".")
    return "-" * (value < 0) + f"{int(whole):,}" + (f".{decimals}" if decimals != "0" else "")


def _scientific(value):
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.11e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def spread(points, dx, dy, low, high):
    """Heights for labels at the points (x, y): moved as little as possible, so that those less than dx apart in x are
    dy apart in y, and all within [low, high] if they fit."""
    order = sorted(range(len(points)), key=points.__getitem__)
    heights, column = [0.0] * len(points), []
    for i, after in zip(order, [*order[1:], None]):
        column.append(i)
        if after is None or points[after][0] - points[i][0] >= dx:
            column.sort(key=lambda j: points[j][1])
            for j, y in zip(column, _spread_column([points[j][1] for j in column], dy, low, high)):
                heights[j] = y
            column = []
    return heights


def _spread_column(ys, dy, low, high):
    """The heights nearest to the rising ys (in least squares) that are at least dy apart: labels that would touch
    become a block around the mean of where they should be."""
    blocks = []  # [labels, mean of y - i dy]
    for i, y in enumerate(ys):
        blocks.append([1, y - i * dy])
        while len(blocks) > 1 and blocks[-2][1] > blocks[-1][1]:
            (n, a), (m, b) = blocks[-2:]
            blocks[-2:] = [[n + m, (a * n + b * m) / (n + m)]]
    places = [mean for size, mean in blocks for _ in range(size)]
    places = [min(y + i * dy, high - (len(ys) - 1 - i) * dy) for i, y in enumerate(places)]
    return [max(y, low + i * dy) for i, y in enumerate(places)]
