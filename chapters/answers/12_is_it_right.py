# %% 1 wrong: a tie counts as a win
def worse_wins(p, q, n):
    return float((binomial(n, p) * np.cumsum(binomial(n, q))).sum())


# %% 1 wrong: it is the other one's win
def worse_wins(p, q, n):
    fewer = np.cumsum(binomial(n, p)) - binomial(n, p)
    return float((binomial(n, q) * fewer).sum())


# %% 1 wrong: half of the ties count
def worse_wins(p, q, n):
    fewer = np.cumsum(binomial(n, q)) - binomial(n, q) / 2
    return float((binomial(n, p) * fewer).sum())


# %% 1 wrong: one picture's answer, whatever n is
def worse_wins(p, q, n):
    return p * (1 - q)


# %% 1 right: every pair of counts
def worse_wins(p, q, n):
    table = np.outer(binomial(n, p), binomial(n, q))  # [right ones of one, of two]
    return float(np.tril(table, -1).sum())


# %% 2 wrong: one direction only
def mcnemar(a, b):
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    one, two = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomial(one + two, 0.5)[: min(one, two) + 1].sum())


# %% 2 wrong: all pairs are tossed, the agreeing ones too
def mcnemar(a, b):
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    fewest = min(int((a & ~b).sum()), int((b & ~a).sum()))
    return min(1.0, 2 * float(binomial(len(a), 0.5)[: fewest + 1].sum()))


# %% 2 wrong: exactly this split, not one as uneven
def mcnemar(a, b):
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    one, two = int((a & ~b).sum()), int((b & ~a).sum())
    return min(1.0, 2 * float(binomial(one + two, 0.5)[min(one, two)]))


# %% 2 wrong: an even split gets more than 1
def mcnemar(a, b):
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    one, two = int((a & ~b).sum()), int((b & ~a).sum())
    return 2 * float(binomial(one + two, 0.5)[: min(one, two) + 1].sum())


# %% 2 right: by whole numbers
def mcnemar(a, b):
    pairs = list(zip(a, b, strict=True))
    one, two = pairs.count((1, 0)), pairs.count((0, 1))
    ways = sum(comb(one + two, k) for k in range(min(one, two) + 1))
    return min(1.0, 2 * ways / 2 ** (one + two))


# %% 3 wrong: one setting's mean
def best_of(k, p, n):
    return p


# %% 3 wrong: how many are right, not which share
def best_of(k, p, n):
    exactly = np.diff(np.cumsum(binomial(n, p)) ** k, prepend=0)
    return float((exactly * np.arange(n + 1)).sum())


# %% 3 wrong: k times the pictures in place of the best of k
def best_of(k, p, n):
    return float((binomial(k * n, p) * np.arange(k * n + 1)).sum() / (k * n))


# %% 3 wrong: the power of the probabilities, not of their sums
def best_of(k, p, n):
    exactly = binomial(n, p) ** k
    return float((exactly / exactly.sum() * np.arange(n + 1)).sum() / n)


# %% 3 wrong: the mean and two deviations, whatever k is
def best_of(k, p, n):
    return min(1.0, p + (k > 1) * 2 * (p * (1 - p) / n) ** 0.5)


# %% 3 right: the sum of the tails
def best_of(k, p, n):
    at_most = np.cumsum(binomial(n, p))
    return float((1 - at_most[:-1] ** k).sum() / n)
