# %% 1 wrong: the shift is forgotten
def fewest_steps(t0, steps, shift):
    return int(np.ceil(t0 * steps))


# %% 1 wrong: shifted once more, instead of back
def fewest_steps(t0, steps, shift):
    return int(np.ceil(shift * t0 / (1 + (shift - 1) * t0) * steps))


# %% 1 wrong: rounded down, and begins nearer to the picture than was asked
def fewest_steps(t0, steps, shift):
    return max(1, int(t0 / (shift - (shift - 1) * t0) * steps))


# %% 1 wrong: the steps that are left out
def fewest_steps(t0, steps, shift):
    return steps - int(np.ceil(t0 / (shift - (shift - 1) * t0) * steps))


# %% 1 wrong: a strength, and no number of steps
def fewest_steps(t0, steps, shift):
    return t0 / (shift - (shift - 1) * t0)


# %% 1 right: by trying
def fewest_steps(t0, steps, shift):
    begins = Schedule(shift=shift).timesteps(steps, 1)
    return next(k for k in range(1, steps + 1) if begins[steps - k] >= t0)


# %% 2 wrong: Euler backwards, with the velocity at the other end
def stepped_back(v, x_next, t_next, t, looks):
    return x_next - (t_next - t) * v(x_next, t_next)


# %% 2 wrong: every look is at x_next
def stepped_back(v, x_next, t_next, t, looks):
    for _ in range(looks):
        x = x_next - (t_next - t) * v(x_next, t)
    return x


# %% 2 wrong: each round goes on from the last guess
def stepped_back(v, x_next, t_next, t, looks):
    x = x_next
    for _ in range(looks):
        x = x - (t_next - t) * v(x, t)
    return x


# %% 2 wrong: the sign, which makes the step once more
def stepped_back(v, x_next, t_next, t, looks):
    x = x_next
    for _ in range(looks):
        x = x_next + (t_next - t) * v(x, t)
    return x


# %% 2 wrong: asked at t_next
def stepped_back(v, x_next, t_next, t, looks):
    x = x_next
    for _ in range(looks):
        x = x_next - (t_next - t) * v(x, t_next)
    return x


# %% 2 right: by what is missing after a step
def stepped_back(v, x_next, t_next, t, looks):
    x = x_next
    for _ in range(looks):
        landed = x + (t_next - t) * v(x, t)
        x = x + (x_next - landed)
    return x


# %% 3 wrong: the mean of the noises
def flow_edit_mean(image, v_source, v_target, stops, noises):
    z = image
    for (t, t_next), several in zip(pairwise(stops), noises, strict=True):
        x = (1 - t) * image + t * np.mean(several, axis=0)
        z = z + (t_next - t) * (v_target(z + x - image, t) - v_source(x, t))
    return z


# %% 3 wrong: the sum of the differences
def flow_edit_mean(image, v_source, v_target, stops, noises):
    z = image
    for (t, t_next), several in zip(pairwise(stops), noises, strict=True):
        lines = [(1 - t) * image + t * eps for eps in several]
        z = z + (t_next - t) * sum(v_target(z + x - image, t) - v_source(x, t) for x in lines)
    return z


# %% 3 wrong: the picture moves after each noise
def flow_edit_mean(image, v_source, v_target, stops, noises):
    z = image
    for (t, t_next), several in zip(pairwise(stops), noises, strict=True):
        for eps in several:
            x = (1 - t) * image + t * eps
            z = z + (t_next - t) / len(several) * (v_target(z + x - image, t) - v_source(x, t))
    return z


# %% 3 wrong: the source's velocity has noises of its own
def flow_edit_mean(image, v_source, v_target, stops, noises):
    z, rng = image, np.random.default_rng(3)
    for (t, t_next), several in zip(pairwise(stops), noises, strict=True):
        v = 0
        for eps in several:
            x = (1 - t) * image + t * eps
            other = (1 - t) * image + t * rng.standard_normal(image.shape)
            v = v + (v_target(z + x - image, t) - v_source(other, t)) / len(several)
        z = z + (t_next - t) * v
    return z


# %% 3 wrong: the first noise alone
def flow_edit_mean(image, v_source, v_target, stops, noises):
    z = image
    for (t, t_next), several in zip(pairwise(stops), noises, strict=True):
        x = (1 - t) * image + t * several[0]
        z = z + (t_next - t) * (v_target(z + x - image, t) - v_source(x, t))
    return z


# %% 3 right: a share of the mean after each noise
def flow_edit_mean(image, v_source, v_target, stops, noises):
    z = image
    for (t, t_next), several in zip(pairwise(stops), noises, strict=True):
        v = 0
        for eps in several:
            x = (1 - t) * image + t * eps
            v = v + (v_target(z + x - image, t) - v_source(x, t)) / len(several)
        z = z + (t_next - t) * v
    return z
