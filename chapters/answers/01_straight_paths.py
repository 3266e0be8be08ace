# %% 1 wrong: the velocity's sign is turned round
def ends(x_t, v, t):
    return x_t + t * v, x_t - (1 - t) * v


# %% 1 wrong: the two ends are exchanged
def ends(x_t, v, t):
    return x_t + (1 - t) * v, x_t - t * v


# %% 1 wrong: t is counted from the other end
def ends(x_t, v, t):
    return x_t - (1 - t) * v, x_t + t * v


# %% 1 wrong: the picture is right, and the noise is what is left
def ends(x_t, v, t):
    return x_t - t * v, x_t - (x_t - t * v)


# %% 1 right: the noise from the picture
def ends(x_t, v, t):
    x0 = x_t - t * v
    return x0, x0 + v


# %% 2 wrong: the second look is taken at t, not at t_next
def heun_step(velocity, x, t, t_next):
    here = velocity(x, t)
    there = velocity(x + (t_next - t) * here, t)
    return x + (t_next - t) * (here + there) / 2


# %% 2 wrong: the second look is taken from x
def heun_step(velocity, x, t, t_next):
    return x + (t_next - t) * (velocity(x, t) + velocity(x, t_next)) / 2


# %% 2 wrong: it starts from where Euler's step ends
def heun_step(velocity, x, t, t_next):
    here = velocity(x, t)
    ahead = x + (t_next - t) * here
    return ahead + (t_next - t) * (here + velocity(ahead, t_next)) / 2


# %% 2 wrong: the sum in place of the mean
def heun_step(velocity, x, t, t_next):
    here = velocity(x, t)
    return x + (t_next - t) * (here + velocity(x + (t_next - t) * here, t_next))


# %% 2 wrong: Euler's step
def heun_step(velocity, x, t, t_next):
    return x + (t_next - t) * velocity(x, t)


# %% 2 wrong: the midpoint method, as good and not Heun's
def heun_step(velocity, x, t, t_next):
    middle = (t + t_next) / 2
    return x + (t_next - t) * velocity(x + (middle - t) * velocity(x, t), middle)


# %% 2 right: the mean of the two ends of two Euler steps
def heun_step(velocity, x, t, t_next):
    ahead = x + (t_next - t) * velocity(x, t)
    return (ahead + x + (t_next - t) * velocity(ahead, t_next)) / 2


# %% 3 wrong: uniform
def logit_normal_times(rng, count):
    return rng.random(count)


# %% 3 wrong: logit-uniform, with as many within one sigma
def logit_normal_times(rng, count):
    return 1 / (1 + np.exp(-rng.uniform(-1.464, 1.464, count)))


# %% 3 wrong: logit-Laplace, with as many within one sigma
def logit_normal_times(rng, count):
    return 1 / (1 + np.exp(-rng.laplace(scale=0.870, size=count)))


# %% 3 wrong: normal numbers around a half, cut off
def logit_normal_times(rng, count):
    return np.clip(0.5 + 0.25 * rng.standard_normal(count), 1e-3, 1 - 1e-3)


# %% 3 wrong: half as wide
def logit_normal_times(rng, count):
    return 1 / (1 + np.exp(-rng.standard_normal(count) / 2))


# %% 3 wrong: moved towards noise, as a shift of 3 moves them
def logit_normal_times(rng, count):
    return 3 / (3 + np.exp(-rng.standard_normal(count)))


# %% 3 wrong: a column of times
def logit_normal_times(rng, count):
    return 1 / (1 + np.exp(-rng.standard_normal((count, 1))))


# %% 3 right: by tanh
def logit_normal_times(rng, count):
    return (1 + np.tanh(rng.normal(size=count) / 2)) / 2


# %% 4 wrong: with the time, not against it
def euler(velocity, x, times):
    for t, t_next in pairwise(times):
        x = x + (t - t_next) * velocity(x, t)
    return x


# %% 4 wrong: equal steps
def euler(velocity, x, times):
    for t in times[:-1]:
        x = x - velocity(x, t) / (len(times) - 1)
    return x


# %% 4 wrong: asked at the end of the step
def euler(velocity, x, times):
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * velocity(x, t_next)
    return x


# %% 4 wrong: every look from the noise
def euler(velocity, x, times):
    noise = x
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * velocity(noise, t)
    return x


# %% 4 wrong: a step too many
def euler(velocity, x, times):
    for t, t_next in zip(times, [*times[1:], 0.0], strict=True):
        x = x + (t_next - t) * velocity(x, t)
    return x


# %% 4 wrong: in place
def euler(velocity, x, times):
    for t, t_next in pairwise(times):
        x += (t_next - t) * velocity(x, t)
    return x


# %% 4 right: by index
def euler(velocity, x, times):
    for i in range(len(times) - 1):
        x = x - (times[i] - times[i + 1]) * velocity(x, times[i])
    return x
