# %% 1 wrong: the mean of both ends
def extrapolated(v, x, n):
    return (by_euler(v, x, evenly(n)) + by_euler(v, x, evenly(2 * n))) / 2


# %% 1 wrong: the two runs are exchanged
def extrapolated(v, x, n):
    return 2 * by_euler(v, x, evenly(n)) - by_euler(v, x, evenly(2 * n))


# %% 1 wrong: the weights are those for a method of order 2
def extrapolated(v, x, n):
    coarse, fine = by_euler(v, x, evenly(n)), by_euler(v, x, evenly(2 * n))
    return (4 * fine - coarse) / 3


# %% 1 wrong: one run of as many looks
def extrapolated(v, x, n):
    return by_euler(v, x, evenly(3 * n))


# %% 1 right: on from the second by the difference
def extrapolated(v, x, n):
    fine = by_euler(v, x, evenly(2 * n))
    return fine + (fine - by_euler(v, x, evenly(n)))


# %% 2 wrong: the weights of even steps
def by_adams(v, x, times):
    before = None
    for t, t_next in pairwise(times):
        here = v(x, t)
        middle = here if before is None else 1.5 * here - 0.5 * before
        x, before = x + (t_next - t) * middle, here
    return x


# %% 2 wrong: the line is followed to the step's end, not to its middle
def by_adams(v, x, times):
    before = None
    for t, t_next in pairwise(times):
        here = middle = v(x, t)
        if before is not None:
            middle = here + (t_next - t) / (t - before[0]) * (here - before[1])
        x, before = x + (t_next - t) * middle, (t, here)
    return x


# %% 2 wrong: the ratio of the steps is upside down
def by_adams(v, x, times):
    before = None
    for t, t_next in pairwise(times):
        here = middle = v(x, t)
        if before is not None:
            middle = here + (t - before[0]) / (2 * (t_next - t)) * (here - before[1])
        x, before = x + (t_next - t) * middle, (t, here)
    return x


# %% 2 wrong: the velocities' mean, which looks back and not ahead
def by_adams(v, x, times):
    before = None
    for t, t_next in pairwise(times):
        here = v(x, t)
        middle = here if before is None else (here + before) / 2
        x, before = x + (t_next - t) * middle, here
    return x


# %% 2 wrong: Heun, who takes a second look
def by_adams(v, x, times):
    for t, t_next in pairwise(times):
        here = v(x, t)
        x = x + (t_next - t) * (here + v(x + (t_next - t) * here, t_next)) / 2
    return x


# %% 2 right: by the slope of the line
def by_adams(v, x, times):
    looks = []
    for i in range(len(times) - 1):
        step = times[i + 1] - times[i]
        looks.append(v(x, times[i]))
        bend = 0 if i == 0 else (looks[i] - looks[i - 1]) / (times[i] - times[i - 1])
        x = x + step * looks[i] + step**2 / 2 * bend
    return x


# %% 3 wrong: every piece is as wide as the next
def spread(ts, density, n):
    area = np.append(0, np.cumsum((density[1:] + density[:-1]) / 2))
    return np.interp(np.linspace(0, area[-1], n + 1), area, ts)


# %% 3 wrong: far apart where the density is high
def spread(ts, density, n):
    pieces = 2 / (density[1:] + density[:-1] + 1e-9) * (ts[:-1] - ts[1:])
    area = np.append(0, np.cumsum(pieces))
    return np.interp(np.linspace(0, area[-1], n + 1), area, ts)


# %% 3 wrong: n stops, not n steps
def spread(ts, density, n):
    area = np.append(0, np.cumsum((density[1:] + density[:-1]) / 2 * (ts[:-1] - ts[1:])))
    return np.interp(np.linspace(0, area[-1], n), area, ts)


# %% 3 wrong: they rise
def spread(ts, density, n):
    area = np.append(0, np.cumsum((density[1:] + density[:-1]) / 2 * (ts[:-1] - ts[1:])))
    return np.interp(np.linspace(0, area[-1], n + 1), area, ts)[::-1]


# %% 3 wrong: the density twice, as its square
def spread(ts, density, n):
    area = np.append(0, np.cumsum(((density[1:] + density[:-1]) / 2) ** 2 * (ts[:-1] - ts[1:])))
    return np.interp(np.linspace(0, area[-1], n + 1), area, ts)


# %% 3 right: the area from the other end
def spread(ts, density, n):
    up, heights = np.asarray(ts)[::-1], np.asarray(density)[::-1]
    area = np.append(0, np.cumsum((heights[1:] + heights[:-1]) / 2 * np.diff(up)))
    return np.interp(np.linspace(area[-1], 0, n + 1), area, up)
