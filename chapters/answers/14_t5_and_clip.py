# %% 1 wrong: it is the queries that are hidden
def hidden_padding(bias, ids):
    return bias + np.where(ids == 0, -30000.0, 0.0)[:, None]


# %% 1 wrong: the bias is 0 there, which is a bias like any other
def hidden_padding(bias, ids):
    return np.where(ids == 0, 0.0, bias)


# %% 1 wrong: the end mark is hidden as well
def hidden_padding(bias, ids):
    return np.where(ids <= 1, -30000.0, bias)


# %% 1 wrong: too little, a share is left
def hidden_padding(bias, ids):
    return bias - 5.0 * (ids == 0)


# %% 1 right: in the bias's place
def hidden_padding(bias, ids):
    return np.where((ids == 0)[None, None, :], np.float32(-1e9), bias)


# %% 1 right: cell by cell
def hidden_padding(bias, ids):
    new = np.array(bias)
    new[:, :, ids == 0] = -np.inf
    return new


# %% 2 wrong: the pads are seen
def end_row(q, k, v, end):
    logits = np.einsum("hk,htk->ht", q[:, end], k) / math.sqrt(q.shape[-1])
    return np.einsum("ht,htk->hk", nx.softmax(logits), v)


# %% 2 wrong: not divided by the root of K
def end_row(q, k, v, end):
    logits = np.einsum("hk,htk->ht", q[:, end], k[:, : end + 1])
    return np.einsum("ht,htk->hk", nx.softmax(logits), v[:, : end + 1])


# %% 2 wrong: the end mark does not see itself
def end_row(q, k, v, end):
    logits = np.einsum("hk,htk->ht", q[:, end], k[:, :end]) / math.sqrt(q.shape[-1])
    return np.einsum("ht,htk->hk", nx.softmax(logits), v[:, :end])


# %% 2 wrong: the last token's query, which is a pad's
def end_row(q, k, v, end):
    logits = np.einsum("hk,htk->ht", q[:, -1], k[:, : end + 1]) / math.sqrt(q.shape[-1])
    return np.einsum("ht,htk->hk", nx.softmax(logits), v[:, : end + 1])


# %% 2 wrong: the mean of what the end mark sees
def end_row(q, k, v, end):
    return v[:, : end + 1].mean(axis=1)


# %% 2 right: by einsum
def end_row(q, k, v, end):
    logits = np.einsum("hk,htk->ht", q[:, end], k[:, : end + 1]) / math.sqrt(q.shape[-1])
    return np.einsum("ht,htk->hk", nx.softmax(logits), v[:, : end + 1])


# %% 3 wrong: the encoder's own
def decoder_bucket(distance):
    return bucket(distance)


# %% 3 wrong: the sign is turned round
def decoder_bucket(distance):
    n = max(0, distance)
    return n if n < 16 else min(31, 16 + int(16 * math.log(n / 16) / math.log(8)))


# %% 3 wrong: what comes after counts by its distance
def decoder_bucket(distance):
    n = abs(distance)
    return n if n < 16 else min(31, 16 + int(16 * math.log(n / 16) / math.log(8)))


# %% 3 wrong: even steps, no logarithm
def decoder_bucket(distance):
    n = max(0, -distance)
    return n if n < 16 else min(31, 16 + (n - 16) // 7)


# %% 3 wrong: rounded, not rounded down
def decoder_bucket(distance):
    n = max(0, -distance)
    return n if n < 16 else min(31, 16 + round(16 * math.log(n / 16) / math.log(8)))


# %% 3 wrong: nothing stops at 31
def decoder_bucket(distance):
    n = max(0, -distance)
    return n if n < 16 else 16 + int(16 * math.log(n / 16) / math.log(8))


# %% 3 right: by powers of two
def decoder_bucket(distance):
    n = max(0, -distance)
    return n if n < 16 else min(31, 16 + int(16 / 3 * (math.log2(n) - 4) + 1e-9))
