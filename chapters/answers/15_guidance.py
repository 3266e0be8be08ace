# %% 1 wrong: the two velocities are exchanged
def avoiding(x, t, w, unwanted):
    wanted_v = both(x, t)[0]
    return wanted_v + w * (exact_velocity(x, t, spots, unwanted) - wanted_v)


# %% 1 wrong: away from no prompt, whatever is unwanted
def avoiding(x, t, w, unwanted):
    with_prompt, without = both(x, t)
    return without + w * (with_prompt - without)


# %% 1 wrong: the paper's other convention
def avoiding(x, t, w, unwanted):
    away = exact_velocity(x, t, spots, unwanted)
    with_prompt = both(x, t)[0]
    return with_prompt + w * (with_prompt - away)


# %% 1 right: by shares of the two
def avoiding(x, t, w, unwanted):
    return w * both(x, t)[0] + (1 - w) * exact_velocity(x, t, spots, unwanted)


# %% 2 wrong: outside there is no prompt
def within(w, low, high, steps=40):
    x, count = start, 0
    for t, t_next in pairwise(np.linspace(1, 0, steps + 1)):
        with_prompt, without = both(x, t)
        scale = w if low <= t <= high else 0
        x = x + (t_next - t) * (without + scale * (with_prompt - without))
        count += 2 if low <= t <= high else 1
    return x, count


# %% 2 wrong: every step is counted twice
def within(w, low, high, steps=40):
    x = start
    for t, t_next in pairwise(np.linspace(1, 0, steps + 1)):
        with_prompt, without = both(x, t)
        scale = w if low <= t <= high else 1
        x = x + (t_next - t) * (without + scale * (with_prompt - without))
    return x, 2 * steps


# %% 2 wrong: guided outside
def within(w, low, high, steps=40):
    x, count = start, 0
    for t, t_next in pairwise(np.linspace(1, 0, steps + 1)):
        with_prompt, without = both(x, t)
        scale = 1 if low <= t <= high else w
        x = x + (t_next - t) * (without + scale * (with_prompt - without))
        count += 2 if scale == w else 1
    return x, count


# %% 2 right: the prompt's velocity, and more of it inside
def within(w, low, high, steps=40):
    x, count = start, 0
    for t, t_next in pairwise(np.linspace(1, 0, steps + 1)):
        with_prompt, without = both(x, t)
        more = (w - 1) * (low <= t <= high)
        x = x + (t_next - t) * (with_prompt + more * (with_prompt - without))
        count += 1 + (low <= t <= high)
    return x, count


# %% 3 wrong: w is left out
def folded(layers, w):
    weight, bias = layers[0]
    return [[weight[:, :4], bias], *layers[1:]]


# %% 3 wrong: w, where the network is shown w / 4
def folded(layers, w):
    weight, bias = layers[0]
    return [[weight[:, :4], bias + weight[:, 4] * w], *layers[1:]]


# %% 3 wrong: the old bias is lost
def folded(layers, w):
    weight, _ = layers[0]
    return [[weight[:, :4], weight[:, 4] * w / 4], *layers[1:]]


# %% 3 wrong: the student itself is changed
def folded(layers, w):
    weight, bias = layers[0]
    bias += weight[:, 4] * w / 4
    return [[weight[:, :4], bias], *layers[1:]]


# %% 3 right: as a product
def folded(layers, w):
    weight, bias = layers[0]
    return [[weight[:, :-1], bias + weight[:, -1:] @ np.array([w / 4])], *layers[1:]]
