# %% 1 wrong: all chunks are wiped out
def with_shut_gates(lin, chunks):
    return {name: 0 * array for name, array in lin.items()}


# %% 1 wrong: three chunks are right, six are wiped out
def with_shut_gates(lin, chunks):
    keep = 2 if chunks == 3 else 0
    size = len(lin["bias"]) // chunks
    return {k: np.concatenate([a[: keep * size], 0 * a[keep * size :]]) for k, a in lin.items()}


# %% 1 wrong: the biases of shift and scale are wiped out too
def with_shut_gates(lin, chunks):
    parts = np.split(lin["weight"], chunks)
    weight = np.concatenate([0 * part if i % 3 == 2 else part for i, part in enumerate(parts)])
    return {"weight": weight, "bias": 0 * lin["bias"]}


# %% 1 wrong: the gates' biases stay
def with_shut_gates(lin, chunks):
    parts = np.split(lin["weight"], chunks)
    weight = np.concatenate([0 * part if i % 3 == 2 else part for i, part in enumerate(parts)])
    return {"weight": weight, "bias": lin["bias"]}


# %% 1 wrong: the last third is wiped out, which for six chunks is another
def with_shut_gates(lin, chunks):
    size = 2 * len(lin["bias"]) // 3
    return {k: np.concatenate([a[:size], 0 * a[size:]]) for k, a in lin.items()}


# %% 1 right: by a mask
def with_shut_gates(lin, chunks):
    mask = np.repeat(np.arange(chunks) % 3 != 2, len(lin["bias"]) // chunks).astype(np.float32)
    return {"weight": lin["weight"] * mask[:, None], "bias": lin["bias"] * mask}


# %% 2 wrong: the final layer is forgotten
def table_size(config, steps):
    return steps * (12 * config.depth + 3 * config.depth_single_blocks) * config.hidden_size


# %% 2 wrong: one modulation for both streams of a double block
def table_size(config, steps):
    return steps * (6 * config.depth + 3 * config.depth_single_blocks + 2) * config.hidden_size


# %% 2 wrong: the same table for all steps
def table_size(config, steps):
    return (12 * config.depth + 3 * config.depth_single_blocks + 2) * config.hidden_size


# %% 2 wrong: a gate for the final layer
def table_size(config, steps):
    return steps * (12 * config.depth + 3 * config.depth_single_blocks + 3) * config.hidden_size


# %% 3 wrong: added up, prompt 1 counts twice
def fourth(time1_prompt1, time2_prompt1, time1_prompt2):
    return time2_prompt1 + time1_prompt2


# %% 3 wrong: the other difference
def fourth(time1_prompt1, time2_prompt1, time1_prompt2):
    return time2_prompt1 - time1_prompt2 + time1_prompt1


# %% 3 wrong: the mean of two
def fourth(time1_prompt1, time2_prompt1, time1_prompt2):
    return (time2_prompt1 + time1_prompt2) / 2


# %% 4 wrong: no SiLU
def modulation(p, vec, count):
    return np.split(linear(vec, **p)[:, None], count, axis=-1)


def modulate(x, shift, scale):
    return (1 + scale) * layer_norm(x) + shift


# %% 4 wrong: SiLU of the result
def modulation(p, vec, count):
    return np.split(silu(linear(vec, **p))[:, None], count, axis=-1)


def modulate(x, shift, scale):
    return (1 + scale) * layer_norm(x) + shift


# %% 4 wrong: no axis for the tokens
def modulation(p, vec, count):
    return np.split(linear(silu(vec), **p), count, axis=-1)


def modulate(x, shift, scale):
    return (1 + scale) * layer_norm(x) + shift


# %% 4 wrong: scale without the 1
def modulation(p, vec, count):
    return np.split(linear(silu(vec), **p)[:, None], count, axis=-1)


def modulate(x, shift, scale):
    return scale * layer_norm(x) + shift


# %% 4 wrong: shifted before it is scaled
def modulation(p, vec, count):
    return np.split(linear(silu(vec), **p)[:, None], count, axis=-1)


def modulate(x, shift, scale):
    return (1 + scale) * (layer_norm(x) + shift)


# %% 4 wrong: not normed
def modulation(p, vec, count):
    return np.split(linear(silu(vec), **p)[:, None], count, axis=-1)


def modulate(x, shift, scale):
    return (1 + scale) * x + shift


# %% 4 right: by reshape
def modulation(p, vec, count):
    made = silu(vec) @ p["weight"].T + p["bias"]
    return list(made.reshape(len(vec), count, 1, -1).swapaxes(0, 1))


def modulate(x, shift, scale):
    normed = layer_norm(x)
    return normed + scale * normed + shift
