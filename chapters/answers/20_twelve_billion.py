# %% 1 wrong: the first number is taken from the highest bits
def unpacked(words, scale, bias, bits):
    shifts = np.arange(32 - bits, -1, -bits, dtype=np.uint32)
    q = (words[:, :, None] >> shifts) & np.uint32(2**bits - 1)
    return (q.reshape(*scale.shape, 64) * scale[..., None] + bias[..., None]).reshape(len(words), -1)


# %% 1 wrong: what lies above the number is not cut off
def unpacked(words, scale, bias, bits):
    q = words[:, :, None] >> np.arange(0, 32, bits, dtype=np.uint32)
    return (q.reshape(*scale.shape, 64) * scale[..., None] + bias[..., None]).reshape(len(words), -1)


# %% 1 wrong: the bias is added before the scale
def unpacked(words, scale, bias, bits):
    q = (words[:, :, None] >> np.arange(0, 32, bits, dtype=np.uint32)) & np.uint32(2**bits - 1)
    return ((q.reshape(*scale.shape, 64) + bias[..., None]) * scale[..., None]).reshape(len(words), -1)


# %% 1 wrong: groups go down the columns
def unpacked(words, scale, bias, bits):
    q = (words[:, :, None] >> np.arange(0, 32, bits, dtype=np.uint32)) & np.uint32(2**bits - 1)
    q = q.reshape(len(words), -1)
    return q * np.tile(scale, 64) + np.tile(bias, 64)


# %% 1 wrong: always 4 bits
def unpacked(words, scale, bias, bits):
    q = (words[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32)) & np.uint32(15)
    return q.reshape(len(words), -1) * scale.repeat(q.size // scale.size, 1) + bias.repeat(q.size // scale.size, 1)


# %% 1 right: by bytes
def unpacked(words, scale, bias, bits):
    q = np.ascontiguousarray(words).astype("<u4").view(np.uint8)
    if bits == 4:
        q = np.stack([q & 15, q >> 4], axis=-1).reshape(len(words), -1)
    return q * scale.repeat(64, axis=1) + bias.repeat(64, axis=1)


# %% 2 wrong: staged as the sum of all stages
def held(parts, mode, bits):
    each = (bits + 0.5 * (bits < 16)) / 8
    if mode == "streamed":
        return each * max(part[2] for part in parts)
    return each * sum(part[1] for part in parts)


# %% 2 wrong: staged as the transformer alone
def held(parts, mode, bits):
    each = (bits + 0.5 * (bits < 16)) / 8
    if mode == "streamed":
        return each * max(part[2] for part in parts)
    return each * sum(part[1] for part in parts if mode == "resident" or part[0] == "steps")


# %% 2 wrong: scales and biases are forgotten
def held(parts, mode, bits):
    if mode == "streamed":
        return bits / 8 * max(part[2] for part in parts)
    stages = {stage: sum(part[1] for part in parts if part[0] == stage) for stage, *_ in parts}
    return bits / 8 * (sum(stages.values()) if mode == "resident" else max(stages.values()))


# %% 2 wrong: scales in 16 bits too
def held(parts, mode, bits):
    each = (bits + 0.5) / 8
    if mode == "streamed":
        return each * max(part[2] for part in parts)
    stages = {stage: sum(part[1] for part in parts if part[0] == stage) for stage, *_ in parts}
    return each * (sum(stages.values()) if mode == "resident" else max(stages.values()))


# %% 2 wrong: the largest part, not the largest stage
def held(parts, mode, bits):
    each = (bits + 0.5 * (bits < 16)) / 8
    if mode == "streamed":
        return each * max(part[2] for part in parts)
    return each * (sum if mode == "resident" else max)(part[1] for part in parts)


# %% 2 wrong: bits, not bytes
def held(parts, mode, bits):
    each = bits + 0.5 * (bits < 16)
    if mode == "streamed":
        return each * max(part[2] for part in parts)
    stages = {stage: sum(part[1] for part in parts if part[0] == stage) for stage, *_ in parts}
    return each * (sum(stages.values()) if mode == "resident" else max(stages.values()))


# %% 2 right: whole numbers of bits, stage by stage
def held(parts, mode, bits):
    halves = 2 * bits + (bits < 16)
    stages = {}
    for stage, weights, largest in parts:
        key = {"resident": "all", "staged": stage}.get(mode, (stage, largest))
        stages[key] = stages.get(key, 0) + (largest if mode == "streamed" else weights)
    return max(stages.values()) * halves / 16


# %% 3 wrong: the same narrower range for all
def tight(groups, bits):
    low, high = groups.min(1, keepdims=True) * 0.7, groups.max(1, keepdims=True) * 0.7
    step = (high - low) / (2**bits - 1)
    return np.clip(np.rint((groups - low) / step), 0, 2**bits - 1) * step + low


# %% 3 wrong: what lies outside the narrower range keeps its own level
def tight(groups, bits):
    low, high = groups.min(1, keepdims=True) * 0.7, groups.max(1, keepdims=True) * 0.7
    step = (high - low) / (2**bits - 1)
    return np.rint((groups - low) / step) * step + low


# %% 3 wrong: from end to end, as before
def tight(groups, bits):
    return by_ends(groups, bits)


# %% 3 wrong: one share for the whole matrix, the one that is best in sum
def tight(groups, bits):
    found = []
    for share in np.linspace(1, 0.5, 26):
        low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
        low, step = (low + high - share * (high - low)) / 2, share * (high - low) / (2**bits - 1)
        found.append(np.clip(np.rint((groups - low) / step), 0, 2**bits - 1) * step + low)
    return min(found, key=lambda each: ((each - groups) ** 2).sum())


# %% 3 wrong: levels where the numbers are, not evenly spaced
def tight(groups, bits):
    found = by_ends(groups, bits)
    for row, group in enumerate(groups):
        levels = np.quantile(group, (np.arange(2**bits) + 0.5) / 2**bits)
        best = levels[np.abs(group[:, None] - levels).argmin(axis=1)]
        if ((best - group) ** 2).sum() < ((found[row] - group) ** 2).sum():
            found[row] = best
    return found


# %% 3 right: each end by itself
def tight(groups, bits):
    ends = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    best = by_ends(groups, bits)
    for a in np.linspace(1, 0.4, 13):
        for b in np.linspace(1, 0.4, 13):
            middle = (ends[0] + ends[1]) / 2
            low, high = middle + a * (ends[0] - middle), middle + b * (ends[1] - middle)
            step = (high - low) / (2**bits - 1)
            found = np.clip(np.rint((groups - low) / step), 0, 2**bits - 1) * step + low
            better = ((found - groups) ** 2).sum(1) < ((best - groups) ** 2).sum(1) - 1e-12
            best = np.where(better[:, None], found, best)
    return best
