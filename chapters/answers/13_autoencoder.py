# %% 1 wrong: the spread itself, not 1 divided by it
def constants(raw):
    return raw.mean(), raw.std()


# %% 1 wrong: the variance for the spread
def constants(raw):
    return raw.mean(), 1 / raw.var()


# %% 1 wrong: the shift has the opposite sign, as if it were added
def constants(raw):
    return -raw.mean(), 1 / raw.std()


# %% 1 wrong: the shift is taken of scaled latents
def constants(raw):
    scale = 1 / raw.std()
    return (raw * scale).mean(), scale


# %% 1 wrong: two numbers for each channel
def constants(raw):
    return raw.mean(axis=(0, 1, 2)), 1 / raw.std(axis=(0, 1, 2))


# %% 1 wrong: the size for the spread, with the mean still in it
def constants(raw):
    return raw.mean(), 1 / np.sqrt((raw**2).mean())


# %% 1 right: by moments
def constants(raw):
    shift = raw.sum() / raw.size
    return float(shift), float(((raw**2).mean() - shift**2) ** -0.5)


# %% 2 wrong: nats
def bits(mean, log_variance):
    return ((mean**2 + np.exp(log_variance) - 1 - log_variance) / 2).sum(axis=(1, 2, 3))


# %% 2 wrong: a latent's mean, not a picture's sum
def bits(mean, log_variance):
    return ((mean**2 + np.exp(log_variance) - 1 - log_variance) / 2).mean(axis=(1, 2, 3)) / np.log(2)


# %% 2 wrong: the log-variance is taken for log σ
def bits(mean, log_variance):
    nats = (mean**2 + np.exp(2 * log_variance) - 1 - 2 * log_variance) / 2
    return nats.sum(axis=(1, 2, 3)) / np.log(2)


# %% 2 wrong: the half is forgotten
def bits(mean, log_variance):
    return (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=(1, 2, 3)) / np.log(2)


# %% 2 wrong: all pictures together
def bits(mean, log_variance):
    return ((mean**2 + np.exp(log_variance) - 1 - log_variance) / 2).sum() / np.log(2)


# %% 2 wrong: the logarithm's sign
def bits(mean, log_variance):
    nats = (mean**2 + np.exp(log_variance) - 1 + log_variance) / 2
    return nats.sum(axis=(1, 2, 3)) / np.log(2)


# %% 2 right: by σ, and log2
def bits(mean, log_variance):
    sigma = np.exp(log_variance / 2)
    each = (mean**2 + sigma**2 - 1) / 2 / np.log(2) - np.log2(sigma)
    return each.reshape(len(mean), -1).sum(axis=1)


# %% 3 wrong: the mean by chances
def best_guess(values, chances):
    return chances @ values


# %% 3 wrong: the median, as if all chances were alike
def best_guess(values, chances):
    return np.median(values, axis=0)


# %% 3 wrong: the likeliest
def best_guess(values, chances):
    return values[np.argmax(chances)]


# %% 3 wrong: the chances are not sorted along
def best_guess(values, chances):
    first = (np.cumsum(chances) >= 0.5).argmax()
    return np.sort(values, axis=0)[first]


# %% 3 wrong: sorted by the first column alone
def best_guess(values, chances):
    order = np.argsort(values[:, 0])
    first = (np.cumsum(chances[order]) >= 0.5).argmax()
    return values[order][first]


# %% 3 right: the best of all the values, by trying them
def best_guess(values, chances):
    errors = np.stack([chances @ np.abs(values - v) for v in values])
    return values[errors.argmin(axis=0), np.arange(values.shape[1])]
