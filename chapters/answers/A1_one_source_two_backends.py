# %% 1 wrong: the formula as it stands overflows
def softplus(x):
    nx = backend_of(x)
    return nx.log(1 + nx.exp(x))


# %% 1 wrong: NumPy's own function, which makes NumPy arrays of MLX's
def softplus(x):
    return np.logaddexp(0, x)


# %% 1 wrong: a float64 zero makes all of it float64
def softplus(x):
    nx = backend_of(x)
    return nx.maximum(x, np.zeros(1)) + nx.log(1 + nx.exp(-nx.abs(x)))


# %% 1 wrong: always float32
def softplus(x):
    x = np.float32(x)
    return np.maximum(x, 0) + np.log(1 + np.exp(-np.abs(x)))


# %% 1 wrong: for large x right, for small x the wrong sign
def softplus(x):
    nx = backend_of(x)
    return nx.maximum(x, 0.0) + nx.log(1 + nx.exp(nx.minimum(x, 0.0)))


# %% 1 right: by the absolute value
def softplus(x):
    nx = backend_of(x)
    return (x + nx.abs(x)) / 2 + nx.log(1 + nx.exp(-nx.abs(x)))


# %% 2 wrong: it asks for the name
def is_right(op):
    return op.__name__ == "softmax"


# %% 2 wrong: it asks only whether rows add up to 1
def is_right(op):
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    return bool(np.allclose(op(x).sum(axis=-1), 1, atol=1e-6))


# %% 2 wrong: small numbers alone never overflow
def is_right(op):
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return bool(np.allclose(op(x), e / e.sum(axis=-1, keepdims=True), atol=1e-6))


# %% 2 wrong: ones
def is_right(op):
    return bool(np.allclose(op(np.ones((4, 4), np.float32)), 0.25))


# %% 2 wrong: so strict that the right one fails
def is_right(op):
    x = np.random.default_rng(1).standard_normal((3, 4))
    e = np.exp(x)
    return bool((op(x.astype(np.float32)) == e / e.sum(axis=-1, keepdims=True)).all())


# %% 2 right: two arrays, one small and one large
def is_right(op):
    for size in (1, 300):
        x = (size * np.random.default_rng(1).standard_normal((5, 7))).astype(np.float32)
        e = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
        if not np.allclose(op(x), e / e.sum(axis=-1, keepdims=True), atol=1e-5):
            return False
    return True


# %% 3 wrong: the mean of float32 is taken for float64
float64 = {2, 3, 4, 6, 7}

# %% 3 wrong: whole numbers times float32 are taken for float32
float64 = {3, 4, 7}

# %% 3 wrong: Python's numbers are taken for arrays of float64
float64 = {0, 1, 2, 3, 4, 7}

# %% 3 wrong: none
float64 = set()
