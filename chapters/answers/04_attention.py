# %% 1 wrong: the key itself
query = nine_keys[3]

# %% 1 wrong: the key itself, made long
query = 100 * nine_keys[3]

# %% 1 wrong: nothing is asked
query = np.zeros(8)

# %% 1 wrong: the right direction, and too short
query = 2 * np.linalg.pinv(nine_keys - nine_keys.mean(axis=0))[:, 3]

# %% 1 wrong: one number for each key
query = 40 * np.eye(9)[3]

# %% 1 right: another way to solve it, longer
query = 500 * np.linalg.lstsq(nine_keys - nine_keys.mean(axis=0), np.eye(9)[3], rcond=None)[0]

# %% 2 wrong: what sees one token at a time, and no more
equivariant = {"linear", "mlp", "norm"}

# %% 2 wrong: the mask does no harm
equivariant = {"linear", "mlp", "norm", "attention", "masked attention", "mean added"}

# %% 2 wrong: a mean over the list minds its order
equivariant = {"linear", "mlp", "norm", "attention"}

# %% 2 wrong: all
equivariant = set(layers)

# %% 2 wrong: another name
equivariant = {"linear", "mlp", "norm", "self-attention", "mean added"}

# %% 2 right: as a list
equivariant = ["mean added", "attention", "norm", "mlp", "linear"]


# %% 3 wrong: not even itself
def no_peeking(length):
    return np.triu(np.full((length, length), -np.inf), 0)


# %% 3 wrong: only what comes after
def no_peeking(length):
    return np.tril(np.full((length, length), -np.inf), -1)


# %% 3 wrong: ones and zeros, as for a product
def no_peeking(length):
    return np.tri(length)


# %% 3 wrong: too weak
def no_peeking(length):
    return np.triu(np.full((length, length), -1.0), 1)


# %% 3 wrong: the farther back, the less
def no_peeking(length):
    place = np.arange(length)
    back = place[:, None] - place
    return np.where(back < 0, -np.inf, -1.0 * back)


# %% 3 right: a large number does as well
def no_peeking(length):
    place = np.arange(length)
    return -30_000.0 * (place[None] > place[:, None])


# %% 4 wrong: not divided
def attention(q, k, v, bias=0.0):
    return softmax(q @ k.swapaxes(-1, -2) + bias) @ v


# %% 4 wrong: divided by K
def attention(q, k, v, bias=0.0):
    return softmax(q @ k.swapaxes(-1, -2) / q.shape[-1] + bias) @ v


# %% 4 wrong: divided by the root of the whole width
def attention(q, k, v, bias=0.0):
    width = q.shape[1] * q.shape[-1]
    return softmax(q @ k.swapaxes(-1, -2) / math.sqrt(width) + bias) @ v


# %% 4 wrong: shares over the queries
def attention(q, k, v, bias=0.0):
    products = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + bias
    return softmax(products.swapaxes(-1, -2)).swapaxes(-1, -2) @ v


# %% 4 wrong: the bias is divided too
def attention(q, k, v, bias=0.0):
    return softmax((q @ k.swapaxes(-1, -2) + bias) / math.sqrt(q.shape[-1])) @ v


# %% 4 wrong: the bias after the softmax
def attention(q, k, v, bias=0.0):
    return (softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) + bias) @ v


# %% 4 wrong: keys look, and queries are looked at
def attention(q, k, v, bias=0.0):
    return softmax(k @ q.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + bias) @ v


# %% 4 right: by einsum
def attention(q, k, v, bias=0.0):
    products = np.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    return np.einsum("bhqk,bhkd->bhqd", softmax(products + bias), v)
