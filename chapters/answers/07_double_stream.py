# %% 1 wrong: the text is cut off from the picture
def cut(texts, images):
    bias = np.zeros((texts + images, texts + images), np.float32)
    bias[:texts, texts:] = -np.inf
    return bias


# %% 1 wrong: both ways
def cut(texts, images):
    bias = np.zeros((texts + images, texts + images), np.float32)
    bias[texts:, :texts] = bias[:texts, texts:] = -np.inf
    return bias


# %% 1 wrong: nothing is cut
def cut(texts, images):
    return np.zeros((texts + images, texts + images), np.float32)


# %% 1 wrong: minus one makes a look rare, and does not forbid it
def cut(texts, images):
    bias = np.zeros((texts + images, texts + images), np.float32)
    bias[texts:, :texts] = -1
    return bias


# %% 1 wrong: the picture comes first
def cut(texts, images):
    bias = np.zeros((texts + images, texts + images), np.float32)
    bias[:images, images:] = -np.inf
    return bias


# %% 1 right: a number so low that nothing is left of it
def cut(texts, images):
    place = np.arange(texts + images)
    return np.where((place[:, None] >= texts) & (place < texts), np.float32(-1e4), np.float32(0))


# %% 2 wrong: order always matters
same_a, same_b, same_c = False, False, False

# %% 2 wrong: order never matters
same_a, same_b, same_c = True, True, True

# %% 2 wrong: words have places
same_a, same_b, same_c = False, True, False

# %% 2 wrong: the place in the list counts, and not the id
same_a, same_b, same_c = True, False, True

# %% 2 wrong: only words are free
same_a, same_b, same_c = True, False, False
