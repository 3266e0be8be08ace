# %% 1 wrong: by the guidance embedder
def family(shapes):
    if "pos_embed" in shapes:
        return "SD3"
    return "FLUX.1" if "guidance_in.in_layer.weight" in shapes else "FLUX.2"


# %% 1 wrong: by the width of a token
def family(shapes):
    if "img_in.weight" not in shapes:
        return "SD3"
    return "FLUX.1" if shapes["img_in.weight"] == (3072, 64) else "FLUX.2"


# %% 1 wrong: by the number of blocks
def family(shapes):
    if "single_blocks.0.linear1.weight" not in shapes:
        return "SD3"
    return "FLUX.1" if "double_blocks.18.img_attn.qkv.weight" in shapes else "FLUX.2"


# %% 1 wrong: by the norm of queries, which SD3.5 has too
def family(shapes):
    if "double_blocks.0.img_attn.norm.query_norm.scale" not in shapes:
        return "SD3"
    return "FLUX.1" if "vector_in.in_layer.weight" in shapes else "FLUX.2"


# %% 1 right: by biases and single blocks
def family(shapes):
    if not any(name.endswith("bias") for name in shapes):
        return "FLUX.2"
    return "FLUX.1" if any(name.startswith("single") for name in shapes) else "SD3"


# %% 1 right: by the pooled text and the way in
def family(shapes):
    if "patch_in.weight" in shapes:
        return "SD3"
    return "FLUX.1" if "vector_in.in_layer.weight" in shapes else "FLUX.2"


# %% 2 wrong: the last block is taken for a whole one
def blocks_more(depth):
    return (12 * depth - 12) // 24


# %% 2 wrong: the new blocks bring their modulations
def blocks_more(depth):
    return (12 * depth - 16) // 36


# %% 2 wrong: nothing is left, not even the shared ones
def blocks_more(depth):
    return (12 * depth - 4) // 24


# %% 2 wrong: rounded up
def blocks_more(depth):
    return -(-(12 * depth - 16) // 24)


# %% 2 wrong: one stream a block
def blocks_more(depth):
    return (12 * depth - 16) // 12


# %% 2 right: by thirds
def blocks_more(depth):
    return (3 * depth - 4) // 6


# %% 3 wrong: the time is not read
def unet(p, x, t, text):
    fine = conv(p["down"], x[:, None])
    steer = text.mean(axis=1) @ p["words"].T
    coarse = np.tanh(conv(p["middle"], np.tanh(fine[:, :, ::2, ::2] + steer[:, :, None, None])))
    back = coarse.repeat(2, axis=2).repeat(2, axis=3)
    return conv(p["up"], np.concatenate([fine, back], axis=1))


# %% 3 wrong: the text is averaged and left
def unet(p, x, t, text):
    text = text.mean(axis=1)
    fine = conv(p["down"], x[:, None])
    steer = t[:, None] * p["time"]
    coarse = np.tanh(conv(p["middle"], np.tanh(fine[:, :, ::2, ::2] + steer[:, :, None, None])))
    back = coarse.repeat(2, axis=2).repeat(2, axis=3)
    return conv(p["up"], np.concatenate([fine, back], axis=1))


# %% 3 wrong: the text is averaged over the prompts too
def unet(p, x, t, text):
    fine = conv(p["down"], x[:, None])
    steer = t[:, None] * p["time"] + text.mean(axis=(0, 1)) @ p["words"].T
    coarse = np.tanh(conv(p["middle"], np.tanh(fine[:, :, ::2, ::2] + steer[:, :, None, None])))
    back = coarse.repeat(2, axis=2).repeat(2, axis=3)
    return conv(p["up"], np.concatenate([fine, back], axis=1))


# %% 3 wrong: the first word alone is read
def unet(p, x, t, text):
    fine = conv(p["down"], x[:, None])
    steer = t[:, None] * p["time"] + text[:, 0] @ p["words"].T
    coarse = np.tanh(conv(p["middle"], np.tanh(fine[:, :, ::2, ::2] + steer[:, :, None, None])))
    back = coarse.repeat(2, axis=2).repeat(2, axis=3)
    return conv(p["up"], np.concatenate([fine, back], axis=1))


# %% 3 wrong: every prediction is compared with every image's noise
def loss(predict, image, t, noise, text):
    noisy = image + t[:, None, None] * noise
    return ((predict(noisy, t, text) - noise) ** 2).mean()


# %% 3 wrong: the loss is no square
def loss(predict, image, t, noise, text):
    noisy = image + t[:, None, None] * noise
    return (predict(noisy, t, text)[:, 0] - noise).mean() ** 2


# %% 3 wrong: the noise is added
def draw(predict, x, times, text):
    for now, after in pairwise(times):
        x = x + (now - after) * predict(x, np.full(len(x), now), text)[:, 0]
    return x


# %% 3 wrong: all of the noise is taken away in every step
def draw(predict, x, times, text):
    for now in times[:-1]:
        x = x - predict(x, np.full(len(x), now), text)[:, 0]
    return x


# %% 3 right: scaled and shifted, as in chapter 06, and the loss by the noise's shape
def unet(p, x, t, text):
    fine = conv(p["down"], x[:, None])
    scale, shift = np.outer(t, p["time"]), text.mean(axis=1) @ p["words"].T
    coarse = (1 + scale[:, :, None, None]) * fine[:, :, ::2, ::2] + shift[:, :, None, None]
    coarse = np.tanh(conv(p["middle"], np.tanh(coarse)))
    back = coarse.repeat(2, axis=2).repeat(2, axis=3)
    return conv(p["up"], np.concatenate([fine, back], axis=1))


def loss(predict, image, t, noise, text):
    return np.square(predict(image + t[:, None, None] * noise, t, text) - noise[:, None]).mean()


# %% 3 right: the way down by the difference
def draw(predict, x, times, text):
    for i in range(len(times) - 1):
        x = x + (times[i + 1] - times[i]) * predict(x, np.full(len(x), times[i]), text)[:, 0]
    return x
