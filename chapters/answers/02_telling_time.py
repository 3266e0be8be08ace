# %% 1 wrong: one hand for all, the fastest
def likeness_with(factor, apart):
    return np.cos(factor * apart)


smallest = 1000


# %% 1 wrong: the sum in place of the mean
def likeness_with(factor, apart):
    return np.cos(factor * apart * speeds).sum()


smallest = 1000


# %% 1 wrong: sines
def likeness_with(factor, apart):
    return np.sin(factor * apart * speeds).mean()


smallest = 1000


# %% 1 wrong: 100, where they are still 0.902 alike
def likeness_with(factor, apart):
    return np.cos(factor * apart * speeds).mean()


smallest = 100


# %% 1 wrong: a factor that was not among the four
def likeness_with(factor, apart):
    return np.cos(factor * apart * speeds).mean()


smallest = 500


# %% 1 right: from two embeddings
def likeness_with(factor, apart):
    a, b = timestep_embedding(np.float32([0.0, apart]), 256, time_factor=factor)
    return float(a @ b) / 128


smallest = 1000


# %% 2 wrong: the factor 1000 is forgotten
def later(embedding, delta):
    c, s = np.cos(delta * speeds), np.sin(delta * speeds)
    return np.concatenate([embedding[:128] * c - embedding[128:] * s, embedding[128:] * c + embedding[:128] * s])


# %% 2 wrong: backwards
def later(embedding, delta):
    c, s = np.cos(1000 * delta * speeds), np.sin(1000 * delta * speeds)
    return np.concatenate([embedding[:128] * c + embedding[128:] * s, embedding[128:] * c - embedding[:128] * s])


# %% 2 wrong: sines and cosines alternate
def later(embedding, delta):
    c, s = np.cos(1000 * delta * speeds), np.sin(1000 * delta * speeds)
    cos, sin = embedding[::2], embedding[1::2]
    return np.stack([cos * c - sin * s, sin * c + cos * s], axis=1).reshape(256)


# %% 2 wrong: the embedding of delta is added
def later(embedding, delta):
    return embedding + timestep_embedding(np.float32([delta]), 256)[0]


# %% 2 wrong: always forward
def later(embedding, delta):
    c, s = np.cos(1000 * abs(delta) * speeds), np.sin(1000 * abs(delta) * speeds)
    return np.concatenate([embedding[:128] * c - embedding[128:] * s, embedding[128:] * c + embedding[:128] * s])


# %% 2 right: as complex numbers
def later(embedding, delta):
    turned = (embedding[:128] + 1j * embedding[128:]) * np.exp(1j * 1000 * delta * speeds)
    return np.concatenate([turned.real, turned.imag])


# %% 3 wrong: a table of 101 times is too coarse
def read(embedding):
    candidates = np.linspace(0, 1, 101, dtype=np.float32)
    return candidates[np.argmax(timestep_embedding(candidates, 256) @ embedding)]


# %% 3 wrong: the fastest hand alone, which goes round 159 times
def read(embedding):
    return np.arctan2(embedding[128], embedding[0]) % (2 * np.pi) / 1000


# %% 3 wrong: where the likeness is smallest
def read(embedding):
    candidates = np.linspace(0, 1, 10_001, dtype=np.float32)
    return candidates[np.argmin(timestep_embedding(candidates, 256) @ embedding)]


# %% 3 wrong: a table of half the times
def read(embedding):
    candidates = np.linspace(0, 0.5, 10_001, dtype=np.float32)
    return candidates[np.argmax(timestep_embedding(candidates, 256) @ embedding)]


# %% 3 right: from the slowest hand that still tells 1/2000 from 0, then by faster ones
def read(embedding):
    t = 0.0
    for hand in range(127, -1, -1):
        angle = np.arctan2(embedding[128 + hand], embedding[hand])
        off = (angle - 1000 * t * speeds[hand] + np.pi) % (2 * np.pi) - np.pi
        t += off / (1000 * speeds[hand])
    return t


# %% 4 wrong: sines first
def sinusoids(t, dim=256):
    speeds = (10_000 ** (-np.arange(dim // 2) / (dim // 2))).astype(np.float32)
    angles = 1000 * t[:, None] * speeds
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


# %% 4 wrong: cosine and sine by turns
def sinusoids(t, dim=256):
    speeds = (10_000 ** (-np.arange(dim // 2) / (dim // 2))).astype(np.float32)
    angles = 1000 * t[:, None] * speeds
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(len(t), dim)


# %% 4 wrong: without the factor 1000
def sinusoids(t, dim=256):
    speeds = (10_000 ** (-np.arange(dim // 2) / (dim // 2))).astype(np.float32)
    angles = t[:, None] * speeds
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


# %% 4 wrong: speeds as of twice as many hands
def sinusoids(t, dim=256):
    speeds = (10_000 ** (-np.arange(dim // 2) / dim)).astype(np.float32)
    angles = 1000 * t[:, None] * speeds
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


# %% 4 wrong: in float64
def sinusoids(t, dim=256):
    angles = 1000 * t[:, None] * 10_000 ** (-np.arange(dim // 2) / (dim // 2))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


# %% 4 right: by an outer product
def sinusoids(t, dim=256):
    speeds = np.power(10_000, -np.arange(dim // 2) / (dim // 2)).astype(np.float32)
    angles = np.outer(1000 * t, speeds)
    return np.hstack([np.cos(angles), np.sin(angles)])
