# %% 1 wrong: three axes of equal length
def products(q, k, ids):
    pe = rope(ids, (16, 16, 16))
    return apply_rope(q, pe) @ apply_rope(k, pe).swapaxes(-1, -2)


# %% 1 wrong: the column alone
def products(q, k, ids):
    pe = rope(ids[..., 2:], (48,))
    return apply_rope(q, pe) @ apply_rope(k, pe).swapaxes(-1, -2)


# %% 1 wrong: keys down, queries across
def products(q, k, ids):
    pe = rope(ids, (8, 20, 20))
    return apply_rope(k, pe) @ apply_rope(q, pe).swapaxes(-1, -2)


# %% 1 wrong: divided by √48
def products(q, k, ids):
    pe = rope(ids, (8, 20, 20))
    return apply_rope(q, pe) @ apply_rope(k, pe).swapaxes(-1, -2) / math.sqrt(48)


# %% 1 wrong: nothing is turned
def products(q, k, ids):
    return q @ k.swapaxes(-1, -2)


# %% 1 wrong: the queries alone are turned
def products(q, k, ids):
    return apply_rope(q, rope(ids, (8, 20, 20))) @ k.swapaxes(-1, -2)


# %% 1 wrong: both are turned backwards
def products(q, k, ids):
    pe = rope(-ids, (8, 20, 20))
    return apply_rope(q, pe) @ apply_rope(k, pe).swapaxes(-1, -2)


# %% 1 right: by einsum
def products(q, k, ids):
    q, k = (apply_rope(x, rope(ids, (8, 20, 20))) for x in (q, k))
    return np.einsum("bhqd,bhkd->bhqk", q, k)


# %% 2 wrong: the frequencies
def wavelengths(dim):
    return 10_000 ** (-2 * np.arange(dim // 2) / dim)


slow_pairs = 18


# %% 2 wrong: a whole turn is one radian
def wavelengths(dim):
    return 10_000 ** (2 * np.arange(dim // 2) / dim)


slow_pairs = 18


# %% 2 wrong: one for each number, not for each pair
def wavelengths(dim):
    return 2 * math.pi * 10_000 ** (np.arange(dim) / dim)


slow_pairs = 18


# %% 2 wrong: those that make less than a whole turn
def wavelengths(dim):
    return 2 * math.pi * 10_000 ** (2 * np.arange(dim // 2) / dim)


slow_pairs = int((wavelengths(56) > 64).sum())


# %% 2 wrong: the first is left out
def wavelengths(dim):
    return 2 * math.pi * 10_000 ** (2 * np.arange(1, dim // 2 + 1) / dim)


slow_pairs = 18

# %% 3 wrong: the inverse permutation
order = np.arange(48).reshape(2, 24).T.reshape(48)

# %% 3 wrong: as they are
order = np.arange(48)

# %% 3 wrong: odd numbers first, which turns backwards
order = np.concatenate([np.arange(1, 48, 2), np.arange(0, 48, 2)])

# %% 3 wrong: even numbers twice
order = np.concatenate([np.arange(0, 48, 2), np.arange(0, 48, 2)])

# %% 3 right: as a list
order = [*range(0, 48, 2), *range(1, 48, 2)]


# %% 4 wrong: halves for neighbours
def turn(x, pe):
    cos, sin = pe
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


# %% 4 wrong: backwards
def turn(x, pe):
    cos, sin = pe
    a, b = x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos + b * sin, b * cos - a * sin], axis=-1).reshape(x.shape)


# %% 4 wrong: put back as halves
def turn(x, pe):
    cos, sin = pe
    a, b = x[..., 0::2], x[..., 1::2]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


# %% 4 wrong: the turned a is used for b
def turn(x, pe):
    cos, sin = pe
    a, b = x[..., 0::2], x[..., 1::2]
    a = a * cos - b * sin
    return np.stack([a, a * sin + b * cos], axis=-1).reshape(x.shape)


# %% 4 right: as complex numbers
def turn(x, pe):
    cos, sin = pe
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * (cos + 1j * sin)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)
