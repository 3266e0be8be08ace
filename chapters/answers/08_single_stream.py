# %% 1 wrong: side by side, as before
def sequential_block(p, x, mod, pe):
    return single_block(p, x, mod, pe)


# %% 1 wrong: the bias of linear2 goes in twice
def sequential_block(p, x, mod, pe):
    d = x.shape[-1]
    shift, scale, gate = chunks(mod, 3)
    (w1, b1), (w2, b2) = ((p[name]["weight"], p[name]["bias"]) for name in ("linear1", "linear2"))
    qkv = linear(modulate(x, shift, scale), w1[: 3 * d], b1[: 3 * d])
    x = x + gate * linear(attention(*normed_qkv(p["norm"], qkv), pe), w2[:, :d], b2)
    hidden = linear(modulate(x, shift, scale), w1[3 * d :], b1[3 * d :])
    return x + gate * linear(nx.gelu(hidden), w2[:, d:], b2)


# %% 1 wrong: the MLP comes first
def sequential_block(p, x, mod, pe):
    d = x.shape[-1]
    shift, scale, gate = chunks(mod, 3)
    (w1, b1), (w2, b2) = ((p[name]["weight"], p[name]["bias"]) for name in ("linear1", "linear2"))
    x = x + gate * linear(nx.gelu(linear(modulate(x, shift, scale), w1[3 * d :], b1[3 * d :])), w2[:, d:], b2)
    qkv = linear(modulate(x, shift, scale), w1[: 3 * d], b1[: 3 * d])
    return x + gate * linear(attention(*normed_qkv(p["norm"], qkv), pe), w2[:, :d])


# %% 1 wrong: attention is added without its gate
def sequential_block(p, x, mod, pe):
    d = x.shape[-1]
    shift, scale, gate = chunks(mod, 3)
    (w1, b1), (w2, b2) = ((p[name]["weight"], p[name]["bias"]) for name in ("linear1", "linear2"))
    qkv = linear(modulate(x, shift, scale), w1[: 3 * d], b1[: 3 * d])
    x = x + linear(attention(*normed_qkv(p["norm"], qkv), pe), w2[:, :d])
    hidden = linear(modulate(x, shift, scale), w1[3 * d :], b1[3 * d :])
    return x + gate * linear(nx.gelu(hidden), w2[:, d:], b2)


# %% 1 wrong: the MLP reads the new x, without its norm
def sequential_block(p, x, mod, pe):
    d = x.shape[-1]
    shift, scale, gate = chunks(mod, 3)
    (w1, b1), (w2, b2) = ((p[name]["weight"], p[name]["bias"]) for name in ("linear1", "linear2"))
    qkv = linear(modulate(x, shift, scale), w1[: 3 * d], b1[: 3 * d])
    x = x + gate * linear(attention(*normed_qkv(p["norm"], qkv), pe), w2[:, :d])
    return x + gate * linear(nx.gelu(linear(x, w1[3 * d :], b1[3 * d :])), w2[:, d:], b2)


# %% 2 wrong: half of it
def equal_at(d):
    return 3 * d


pixels_a_side = round(16 * (equal_at(DEV.hidden_size) - 512) ** 0.5)


# %% 2 wrong: the same for every width
def equal_at(d):
    return 18432


pixels_a_side = 2142


# %% 2 wrong: the text is forgotten
def equal_at(d):
    return 6 * d


pixels_a_side = round(16 * equal_at(DEV.hidden_size) ** 0.5)


# %% 2 wrong: 8 pixels a token
def equal_at(d):
    return 6 * d


pixels_a_side = round(8 * (equal_at(DEV.hidden_size) - 512) ** 0.5)


# %% 3 wrong: modulation is forgotten
def single_blocks_for(n, d):
    return round(n * 2 * 12 / 12)


# %% 3 wrong: one stream
def single_blocks_for(n, d):
    return round(n * 18 / 15)


# %% 3 wrong: rounded down
def single_blocks_for(n, d):
    return int(n * 36 / 15)


# %% 3 wrong: by their numbers in FLUX.1, 38 for 19
def single_blocks_for(n, d):
    return 2 * n


# %% 3 right: without d
def single_blocks_for(n, d):
    return round(2.4 * n)


# %% 4 wrong: the MLP's part before attention's
def single_block(p, x, vec, pe):
    shift, scale, gate = modulation(p["modulation"]["lin"], vec, 3)
    first = linear(modulate(x, shift, scale), **p["linear1"])
    qkv, hidden = np.split(first, [3 * x.shape[-1]], axis=-1)
    q, k, v = queries_keys_values(p["norm"], qkv)
    mixed = merge_heads(attention(turn(q, pe), turn(k, pe), v))
    return x + gate * linear(np.concatenate([gelu(hidden), mixed], axis=-1), **p["linear2"])


# %% 4 wrong: GELU on both
def single_block(p, x, vec, pe):
    shift, scale, gate = modulation(p["modulation"]["lin"], vec, 3)
    first = linear(modulate(x, shift, scale), **p["linear1"])
    qkv, hidden = np.split(first, [3 * x.shape[-1]], axis=-1)
    q, k, v = queries_keys_values(p["norm"], qkv)
    mixed = merge_heads(attention(turn(q, pe), turn(k, pe), v))
    return x + gate * linear(gelu(np.concatenate([mixed, hidden], axis=-1)), **p["linear2"])


# %% 4 wrong: no GELU
def single_block(p, x, vec, pe):
    shift, scale, gate = modulation(p["modulation"]["lin"], vec, 3)
    first = linear(modulate(x, shift, scale), **p["linear1"])
    qkv, hidden = np.split(first, [3 * x.shape[-1]], axis=-1)
    q, k, v = queries_keys_values(p["norm"], qkv)
    mixed = merge_heads(attention(turn(q, pe), turn(k, pe), v))
    return x + gate * linear(np.concatenate([mixed, hidden], axis=-1), **p["linear2"])


# %% 4 wrong: nothing is turned
def single_block(p, x, vec, pe):
    shift, scale, gate = modulation(p["modulation"]["lin"], vec, 3)
    first = linear(modulate(x, shift, scale), **p["linear1"])
    qkv, hidden = np.split(first, [3 * x.shape[-1]], axis=-1)
    mixed = merge_heads(attention(*queries_keys_values(p["norm"], qkv)))
    return x + gate * linear(np.concatenate([mixed, gelu(hidden)], axis=-1), **p["linear2"])


# %% 4 wrong: without the stream itself
def single_block(p, x, vec, pe):
    shift, scale, gate = modulation(p["modulation"]["lin"], vec, 3)
    first = linear(modulate(x, shift, scale), **p["linear1"])
    qkv, hidden = np.split(first, [3 * x.shape[-1]], axis=-1)
    q, k, v = queries_keys_values(p["norm"], qkv)
    mixed = merge_heads(attention(turn(q, pe), turn(k, pe), v))
    return gate * linear(np.concatenate([mixed, gelu(hidden)], axis=-1), **p["linear2"])


# %% 4 wrong: gate, scale, shift
def single_block(p, x, vec, pe):
    gate, scale, shift = modulation(p["modulation"]["lin"], vec, 3)
    first = linear(modulate(x, shift, scale), **p["linear1"])
    qkv, hidden = np.split(first, [3 * x.shape[-1]], axis=-1)
    q, k, v = queries_keys_values(p["norm"], qkv)
    mixed = merge_heads(attention(turn(q, pe), turn(k, pe), v))
    return x + gate * linear(np.concatenate([mixed, gelu(hidden)], axis=-1), **p["linear2"])


# %% 4 right: as two corrections
def single_block(p, x, vec, pe):
    shift, scale, gate = modulation(p["modulation"]["lin"], vec, 3)
    width, out = x.shape[-1], p["linear2"]
    first = linear(modulate(x, shift, scale), **p["linear1"])
    q, k, v = queries_keys_values(p["norm"], first[..., : 3 * width])
    heard = merge_heads(attention(turn(q, pe), turn(k, pe), v)) @ out["weight"][:, :width].T
    return x + gate * (heard + gelu(first[..., 3 * width :]) @ out["weight"][:, width:].T + out["bias"])
