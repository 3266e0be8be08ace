# %% 1 wrong: the ups side by side: the three changes are added up
def joint(pairs):
    heights = max(len(b) for _, b in pairs)
    ups = [np.pad(b, ((0, heights - len(b)), (0, 0))) for _, b in pairs]
    return np.concatenate([a for a, _ in pairs]), np.concatenate(ups, axis=1)


# %% 1 wrong: the ups one above the other, the downs added
def joint(pairs):
    rank = max(len(a) for a, _ in pairs)
    down = sum(np.pad(a, ((0, rank - len(a)), (0, 0))) for a, _ in pairs)
    return down, np.concatenate([np.pad(b, ((0, 0), (0, rank - b.shape[1]))) for _, b in pairs])


# %% 1 wrong: the last one stands at the top
def joint(pairs):
    pairs = pairs[::-1]
    up = np.zeros((sum(len(b) for _, b in pairs), sum(len(a) for a, _ in pairs)))
    row = column = 0
    for a, b in pairs:
        up[row : row + len(b), column : column + len(a)] = b
        row, column = row + len(b), column + len(a)
    return np.concatenate([a for a, _ in pairs]), up


# %% 1 wrong: every pair has the first one's rank
def joint(pairs):
    rank = len(pairs[0][0])
    up = np.zeros((sum(len(b) for _, b in pairs), rank * len(pairs)))
    row = 0
    for i, (a, b) in enumerate(pairs):
        up[row : row + len(b), i * rank : i * rank + min(rank, len(a))] = b[:, :rank]
        row += len(b)
    return np.concatenate([np.resize(a, (rank, a.shape[1])) for a, _ in pairs]), up


# %% 1 right: every up with zeros above and below
def joint(pairs):
    ends = np.cumsum([0, *(len(b) for _, b in pairs)])
    ups = [np.pad(b, ((top, ends[-1] - top - len(b)), (0, 0))) for (_, b), top in zip(pairs, ends, strict=False)]
    return np.vstack([a for a, _ in pairs]), np.hstack(ups)


# %% 2 wrong: the means of the A's and of the B's, whose product has terms of both
def both(first, second, s, t):
    (a, b, alpha), (c, d, beta) = first, second
    rank = max(len(a), len(c))
    a, c = (np.pad(x, ((0, rank - len(x)), (0, 0))) for x in (a, c))
    b, d = (np.pad(x, ((0, 0), (0, rank - x.shape[1]))) for x in (b, d))
    return (a + c) / 2, s * b + t * d, (alpha + beta) / 2


# %% 2 wrong: the old alphas are added, and divided by the new rank
def both(first, second, s, t):
    (a, b, alpha), (c, d, beta) = first, second
    return np.concatenate([a, c]), np.concatenate([s * b, t * d], axis=1), alpha + beta


# %% 2 wrong: the new alpha / r is forgotten
def both(first, second, s, t):
    (a, b, alpha), (c, d, beta) = first, second
    up = np.concatenate([s * alpha / len(a) * b, t * beta / len(c) * d], axis=1)
    return np.concatenate([a, c]), up, 1.0


# %% 2 wrong: strengths in both the downs and the ups, so they count squared
def both(first, second, s, t):
    (a, b, alpha), (c, d, beta) = first, second
    up = np.concatenate([s * alpha / len(a) * b, t * beta / len(c) * d], axis=1)
    return np.concatenate([s * a, t * c]), up, float(len(a) + len(c))


# %% 2 right: strengths in the downs
def both(first, second, s, t):
    (a, b, alpha), (c, d, beta) = first, second
    rank = len(a) + len(c)
    downs = s * alpha / len(a) * a, t * beta / len(c) * c
    return np.vstack(downs) / 5, np.hstack([b, d]), 5.0 * rank


# %% 3 wrong: the first rows and columns
def smaller(down, up, rank):
    return down[:rank], up[:, :rank]


# %% 3 wrong: the directions without their sizes
def smaller(down, up, rank):
    q, r = np.linalg.qr(up)
    u, _, v = np.linalg.svd(r @ down, full_matrices=False)
    return v[:rank], q @ u[:, :rank]


# %% 3 wrong: the sizes on both sides
def smaller(down, up, rank):
    q, r = np.linalg.qr(up)
    u, s, v = np.linalg.svd(r @ down, full_matrices=False)
    return s[:rank, None] * v[:rank], q @ (u[:, :rank] * s[:rank])


# %% 3 wrong: the best directions of A alone
def smaller(down, up, rank):
    u, s, v = np.linalg.svd(down, full_matrices=False)
    return v[:rank], up @ (u[:, :rank] * s[:rank])


# %% 3 wrong: the smallest ones
def smaller(down, up, rank):
    q, r = np.linalg.qr(up)
    u, s, v = np.linalg.svd(r @ down, full_matrices=False)
    return v[-rank:], q @ (u[:, -rank:] * s[-rank:])


# %% 3 right: by the other side, sizes shared
def smaller(down, up, rank):
    q, r = np.linalg.qr(down.T)  # down = rᵀ qᵀ
    u, s, v = np.linalg.svd(up @ r.T, full_matrices=False)
    root = np.sqrt(s[:rank])
    return root[:, None] * (v[:rank] @ q.T), u[:, :rank] * root
