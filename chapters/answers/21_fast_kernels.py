# %% 1 wrong: the result is not counted
def rows_needed(k, m, peak, bandwidth, size):
    corner = peak / bandwidth * size
    a_row = 2 * k * m - corner * k
    return math.ceil(corner * k * m / a_row) if a_row > 0 else None


# %% 1 wrong: numbers in place of bytes
def rows_needed(k, m, peak, bandwidth, size):
    corner = peak / bandwidth
    a_row = 2 * k * m - corner * (k + m)
    return math.ceil(corner * k * m / a_row) if a_row > 0 else None


# %% 1 wrong: one operation for a multiplication and an addition
def rows_needed(k, m, peak, bandwidth, size):
    corner = peak / bandwidth * size
    a_row = k * m - corner * (k + m)
    return math.ceil(corner * k * m / a_row) if a_row > 0 else None


# %% 1 wrong: only the matrix is counted
def rows_needed(k, m, peak, bandwidth, size):
    return math.ceil(peak / bandwidth * size / 2)


# %% 1 wrong: a matrix that is too narrow has a negative number of rows
def rows_needed(k, m, peak, bandwidth, size):
    corner = peak / bandwidth * size
    return math.ceil(corner * k * m / (2 * k * m - corner * (k + m)))


# %% 1 wrong: rounded down
def rows_needed(k, m, peak, bandwidth, size):
    corner = peak / bandwidth * size
    a_row = 2 * k * m - corner * (k + m)
    return int(corner * k * m / a_row) if a_row > 0 else None


# %% 1 right: by halving
def rows_needed(k, m, peak, bandwidth, size):
    def enough(n):
        return 2 * n * k * m / (size * (n * k + k * m + n * m)) >= peak / bandwidth

    low, high = 0, 2**40
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


# %% 2 wrong: the mean of the factors
def gains(profile, factors):
    every = [factors.get(part, 1) for part in profile]
    return sum(every) / len(every), max(factors, key=factors.get)


# %% 2 wrong: the factors are weighted by their parts' shares
def gains(profile, factors):
    whole = sum(profile.values())
    saved = {part: profile[part] * (1 - 1 / f) for part, f in factors.items()}
    return sum(s / whole * factors.get(part, 1) for part, s in profile.items()), max(saved, key=saved.get)


# %% 2 wrong: the parts that stay are forgotten
def gains(profile, factors):
    before = sum(profile[part] for part in factors)
    saved = {part: profile[part] * (1 - 1 / f) for part, f in factors.items()}
    return before / (before - sum(saved.values())), max(saved, key=saved.get)


# %% 2 wrong: the largest factor is taken for the best offer
def gains(profile, factors):
    after = sum(s / factors.get(part, 1) for part, s in profile.items())
    return sum(profile.values()) / after, max(factors, key=factors.get)


# %% 2 wrong: the largest part is taken for the best offer
def gains(profile, factors):
    after = sum(s / factors.get(part, 1) for part, s in profile.items())
    return sum(profile.values()) / after, max(factors, key=profile.get)


# %% 2 wrong: what is left, as a share, in place of a factor
def gains(profile, factors):
    after = {part: s / factors.get(part, 1) for part, s in profile.items()}
    saved = {part: profile[part] - after[part] for part in factors}
    return sum(after.values()) / sum(profile.values()), max(saved, key=saved.get)


# %% 2 right: by Amdahl's rule, a part at a time
def gains(profile, factors):
    whole = sum(profile.values())
    left = 1 - sum(profile[part] / whole * (1 - 1 / f) for part, f in factors.items())
    return 1 / left, min(factors, key=lambda part: 1 - profile[part] * (1 - 1 / factors[part]))


# %% 3 wrong: both are added up as they are
def merged(a, b):
    return np.maximum(a[0], b[0]), a[1] + b[1], a[2] + b[2]


# %% 3 wrong: the sums shrink, the mixtures don't
def merged(a, b):
    top = np.maximum(a[0], b[0])
    left, right = np.exp(a[0] - top), np.exp(b[0] - top)
    return top, left * a[1] + right * b[1], a[2] + b[2]


# %% 3 wrong: only the first shrinks, as if the second had the higher top
def merged(a, b):
    left = np.exp(a[0] - b[0])
    return b[0], left * a[1] + b[1], left * a[2] + b[2]


# %% 3 wrong: relative to 0, which overflows
def merged(a, b):
    top = np.maximum(a[0], b[0])
    total = np.exp(a[0]) * a[1] + np.exp(b[0]) * b[1]
    mixed = np.exp(a[0]) * a[2] + np.exp(b[0]) * b[2]
    return top, total / np.exp(top), mixed / np.exp(top)


# %% 3 wrong: they grow in place of shrinking
def merged(a, b):
    top = np.maximum(a[0], b[0])
    left, right = np.exp(top - a[0]), np.exp(top - b[0])
    return top, left * a[1] + right * b[1], left * a[2] + right * b[2]


# %% 3 wrong: the mean of two finished mixtures
def merged(a, b):
    top, total = np.maximum(a[0], b[0]), a[1] + b[1]
    return top, total, total * (a[2] / a[1] + b[2] / b[1]) / 2


# %% 3 right: by the logarithm of each half's sum
def merged(a, b):
    heights = [np.where(x[1] > 0, x[0] + np.log(np.maximum(x[1], 1e-300)), -np.inf) for x in (a, b)]
    top = np.maximum(a[0], b[0])
    totals = [np.exp(h - top) for h in heights]
    means = [x[2] / np.where(x[1] > 0, x[1], 1) for x in (a, b)]
    return top, totals[0] + totals[1], totals[0] * means[0] + totals[1] * means[1]
