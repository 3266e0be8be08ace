# %% 1 wrong: the channel comes last in a token
def my_unpack(tokens, height, width):
    batch, _, length = tokens.shape
    split = tokens.reshape(batch, height // 2, width // 2, 2, 2, length // 4)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, length // 4)


# %% 1 wrong: no transpose
def my_unpack(tokens, height, width):
    return tokens.reshape(len(tokens), height, width, -1)


# %% 1 wrong: rows and columns of a square are exchanged
def my_unpack(tokens, height, width):
    batch, _, length = tokens.shape
    split = tokens.reshape(batch, height // 2, width // 2, length // 4, 2, 2)
    return split.transpose(0, 1, 5, 2, 4, 3).reshape(batch, height, width, length // 4)


# %% 1 wrong: height and width of the grid are exchanged
def my_unpack(tokens, height, width):
    batch, _, length = tokens.shape
    split = tokens.reshape(batch, width // 2, height // 2, length // 4, 2, 2)
    return split.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height, width, length // 4)


# %% 1 wrong: channels first
def my_unpack(tokens, height, width):
    batch, _, length = tokens.shape
    split = tokens.reshape(batch, height // 2, width // 2, length // 4, 2, 2)
    return split.transpose(0, 3, 1, 4, 2, 5).reshape(batch, length // 4, height, width)


# %% 1 right: a loop over the places of a square
def my_unpack(tokens, height, width):
    batch, _, length = tokens.shape
    x = np.zeros((batch, height, width, length // 4), tokens.dtype)
    for row, column in np.ndindex(2, 2):
        own = tokens[..., 2 * row + column :: 4]
        x[:, row::2, column::2] = own.reshape(batch, height // 2, width // 2, length // 4)
    return x


# %% 2 wrong: the width is ignored: five squares a row, as in a picture that is 10 wide
def find(row, column, channel, width):
    return row // 2 * 5 + column // 2, 4 * channel + 2 * (row % 2) + column % 2


# %% 2 wrong: the width of the latents for that of the squares
def find(row, column, channel, width):
    return row // 2 * width + column // 2, 4 * channel + 2 * (row % 2) + column % 2


# %% 2 wrong: the channel comes last in a token
def find(row, column, channel, width):
    return row // 2 * (width // 2) + column // 2, 16 * (2 * (row % 2) + column % 2) + channel


# %% 2 wrong: column by column
def find(row, column, channel, width):
    return row // 2 * (width // 2) + column // 2, 4 * channel + 2 * (column % 2) + row % 2


# %% 2 right: by a look at a packed list of all places
def find(row, column, channel, width):
    x = np.zeros((1, row // 2 * 2 + 2, width, 16))
    x[0, row, column, channel] = 1
    return tuple(np.argwhere(pack(x)[0])[0])


# %% 3 wrong: 8 pixels a token
image_tokens, pairs = 192 * 80, (512 + 192 * 80) ** 2

# %% 3 wrong: each pair is counted once
image_tokens, pairs = 3840, (512 + 3840) * (512 + 3839) // 2

# %% 3 wrong: the text is left out
image_tokens, pairs = 3840, 3840**2

# %% 3 wrong: no token looks at itself
image_tokens, pairs = 3840, 4352 * 4351


# %% 4 wrong: column before row
def position_ids(texts, height, width):
    row, column = np.indices((height // 2, width // 2)).reshape(2, -1)
    image = np.stack([0 * row, column, row], axis=-1)
    return np.concatenate([np.zeros((texts, 3), int), image])[None]


# %% 4 wrong: latents are counted, not squares
def position_ids(texts, height, width):
    row, column = 2 * np.indices((height // 2, width // 2)).reshape(2, -1)
    image = np.stack([0 * row, row, column], axis=-1)
    return np.concatenate([np.zeros((texts, 3), int), image])[None]


# %% 4 wrong: the picture comes first
def position_ids(texts, height, width):
    row, column = np.indices((height // 2, width // 2)).reshape(2, -1)
    image = np.stack([0 * row, row, column], axis=-1)
    return np.concatenate([image, np.zeros((texts, 3), int)])[None]


# %% 4 wrong: words are numbered
def position_ids(texts, height, width):
    row, column = np.indices((height // 2, width // 2)).reshape(2, -1)
    image = np.stack([0 * row, row, column], axis=-1)
    words = np.stack([np.zeros(texts, int), np.zeros(texts, int), np.arange(texts)], axis=-1)
    return np.concatenate([words, image])[None]


# %% 4 wrong: the picture is a reference
def position_ids(texts, height, width):
    row, column = np.indices((height // 2, width // 2)).reshape(2, -1)
    image = np.stack([0 * row + 1, row, column], axis=-1)
    return np.concatenate([np.zeros((texts, 3), int), image])[None]


# %% 4 right: by a list
def position_ids(texts, height, width):
    image = [(0, row, column) for row in range(height // 2) for column in range(width // 2)]
    return np.array([[(0, 0, 0)] * texts + image])
