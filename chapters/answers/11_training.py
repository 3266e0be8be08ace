# %% 1 wrong: drawn freely, as in the chapter
def even_times(rng, count, shift):
    return logit_normal(rng, count, shift)


# %% 1 wrong: the middles of the parts, the same times for ever
def even_times(rng, count, shift):
    u = inv_cdf((np.arange(count) + 0.5) / count)
    t = 1 / (1 + np.exp(-u))
    return shift * t / (1 + (shift - 1) * t)


# %% 1 wrong: even between 0 and 1, and then shifted
def even_times(rng, count, shift):
    t = (np.arange(count) + rng.random(count)) / count
    return shift * t / (1 + (shift - 1) * t)


# %% 1 wrong: the sigmoid of the share itself
def even_times(rng, count, shift):
    t = 1 / (1 + np.exp(-(np.arange(count) + rng.random(count)) / count))
    return shift * t / (1 + (shift - 1) * t)


# %% 1 wrong: shifted towards the picture
def even_times(rng, count, shift):
    u = inv_cdf((np.arange(count) + rng.random(count)) / count)
    t = 1 / (1 + np.exp(-u))
    return t / (shift + (1 - shift) * t)


# %% 1 wrong: drawn freely, and only put in order
def even_times(rng, count, shift):
    share = np.sort(rng.random(count))
    t = 1 / (1 + np.exp(-inv_cdf(share)))
    return shift * t / (1 + (shift - 1) * t)


# %% 1 right: shuffled, and the shift added to the logit
def even_times(rng, count, shift):
    share = (rng.permutation(count) + rng.random(count)) / count
    return 1 / (1 + np.exp(-(inv_cdf(share) + np.log(shift))))


# %% 1 right: one offset within all parts
def even_times(rng, count, shift):
    share = (np.arange(count) + rng.random()) / count
    t = 1 / (1 + np.exp(-inv_cdf(share)))
    return shift * t / (1 + (shift - 1) * t)


# %% 2 wrong: each array for itself
def clipped(slopes, limit):
    return {name: g * min(1, limit / np.linalg.norm(g)) for name, g in slopes.items()}


# %% 2 wrong: each number for itself
def clipped(slopes, limit):
    return {name: np.clip(g, -limit, limit) for name, g in slopes.items()}


# %% 2 wrong: short ones are made longer
def clipped(slopes, limit):
    return {name: g * limit / joint_length(slopes) for name, g in slopes.items()}


# %% 2 wrong: the root is forgotten
def clipped(slopes, limit):
    factor = min(1, limit / joint_length(slopes) ** 2)
    return {name: g * factor for name, g in slopes.items()}


# %% 2 wrong: the sum of the arrays' lengths
def clipped(slopes, limit):
    factor = min(1, limit / sum(np.linalg.norm(g) for g in slopes.values()))
    return {name: g * factor for name, g in slopes.items()}


# %% 2 right: as minflux does, with a millionth
def clipped(slopes, limit):
    length = np.sqrt(sum((g * g).sum() for g in slopes.values()))
    return {name: g * np.minimum(limit / (length + 1e-6), 1.0) for name, g in slopes.items()}


# %% 3 wrong: the same arrays, under another name
def kept(run):
    return dict(run)


# %% 3 wrong: the weights alone
def kept(run):
    return {**toy_run(), "weight": run["weight"].copy()}


# %% 3 wrong: Adam's means are forgotten
def kept(run):
    import copy

    return copy.deepcopy(run) | {"m": np.zeros(2), "v": np.zeros(2)}


# %% 3 wrong: the count begins anew
def kept(run):
    import copy

    return copy.deepcopy(run) | {"step": 0}


# %% 3 wrong: the seed is kept, and not where the generator has got to
def kept(run):
    import copy

    return copy.deepcopy(run) | {"rng": np.random.default_rng(7)}


# %% 3 wrong: both runs throw the same dice
def kept(run):
    return {name: each.copy() if name in ("weight", "m", "v") else each for name, each in run.items()}


# %% 3 right: a deep copy of all
def kept(run):
    import copy

    return copy.deepcopy(run)


# %% 3 right: through bytes, as a file would have it
def kept(run):
    import pickle

    return pickle.loads(pickle.dumps(run))
