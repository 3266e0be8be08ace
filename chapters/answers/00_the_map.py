# %% 1 wrong: the biases are forgotten
def count(cfg):
    d, hidden = cfg.hidden_size, int(cfg.mlp_ratio * cfg.hidden_size)
    embedders = [256, 256, cfg.vec_in_dim] if cfg.guidance_embed else [256, cfg.vec_in_dim]
    inputs = cfg.in_channels * d + cfg.context_in_dim * d + sum(width * d + d * d for width in embedders)
    double = 2 * (10 * d * d + 2 * d * hidden + 2 * d // cfg.num_heads)
    single = 3 * d * d + d * (3 * d + hidden) + (d + hidden) * d + 2 * d // cfg.num_heads
    return inputs + cfg.depth * double + cfg.depth_single_blocks * single + 2 * d * d + d * cfg.out_channels


# %% 1 wrong: every model has a guidance embedder
def count(cfg):
    d, hidden = cfg.hidden_size, int(cfg.mlp_ratio * cfg.hidden_size)
    heads = 2 * d // cfg.num_heads
    inputs = linear(cfg.in_channels, d) + linear(cfg.context_in_dim, d)
    inputs += sum(linear(width, d) + linear(d, d) for width in (256, 256, cfg.vec_in_dim))
    stream = linear(d, 6 * d) + linear(d, 3 * d) + linear(d, d) + linear(d, hidden) + linear(hidden, d) + heads
    single = linear(d, 3 * d) + linear(d, 3 * d + hidden) + linear(d + hidden, d) + heads
    last = linear(d, 2 * d) + linear(d, cfg.out_channels)
    return inputs + cfg.depth * 2 * stream + cfg.depth_single_blocks * single + last


# %% 1 wrong: a double block's two streams share their weights
def count(cfg):
    d, hidden = cfg.hidden_size, int(cfg.mlp_ratio * cfg.hidden_size)
    heads = 2 * d // cfg.num_heads
    embedders = [256, 256, cfg.vec_in_dim] if cfg.guidance_embed else [256, cfg.vec_in_dim]
    inputs = linear(cfg.in_channels, d) + linear(cfg.context_in_dim, d)
    inputs += sum(linear(width, d) + linear(d, d) for width in embedders)
    stream = linear(d, 6 * d) + linear(d, 3 * d) + linear(d, d) + linear(d, hidden) + linear(hidden, d) + heads
    single = linear(d, 3 * d) + linear(d, 3 * d + hidden) + linear(d + hidden, d) + heads
    last = linear(d, 2 * d) + linear(d, cfg.out_channels)
    return inputs + cfg.depth * stream + cfg.depth_single_blocks * single + last


# %% 1 wrong: twelve billion, from the name
def count(cfg):
    return 12_000_000_000


# %% 2 wrong: vec depends on the seed
with_seed = {"noise", "vec", "latents"}
with_prompt = {"t5_ids", "txt", "y", "vec", "latents"}

# %% 2 wrong: the prompt turns the positions too
with_seed = {"noise", "latents"}
with_prompt = {"t5_ids", "txt", "y", "vec", "pe", "latents"}

# %% 2 wrong: the prompt reaches the latents by another way than this
with_seed = {"noise", "latents"}
with_prompt = {"t5_ids", "txt", "y", "vec"}

# %% 2 wrong: a seed changes the noise alone
with_seed = {"noise"}
with_prompt = {"t5_ids", "txt", "y", "vec", "latents"}

# %% 3 wrong: width and height are exchanged
shape_of_noise, shape_of_tokens, shape_of_ids = (1, 96, 64, 16), (1, 1536, 64), (1, 2048, 3)

# %% 3 wrong: latents of 4 channels, as Stable Diffusion has them, and tokens of 16
shape_of_noise, shape_of_tokens, shape_of_ids = (1, 64, 96, 4), (1, 1536, 16), (1, 2048, 3)

# %% 3 wrong: five pictures
shape_of_noise, shape_of_tokens, shape_of_ids = (5, 64, 96, 16), (5, 1536, 64), (1, 2048, 3)

# %% 3 wrong: a token for each place of the latents
shape_of_noise, shape_of_tokens, shape_of_ids = (1, 64, 96, 16), (1, 6144, 16), (1, 6656, 3)

# %% 3 wrong: words have no ids
shape_of_noise, shape_of_tokens, shape_of_ids = (1, 64, 96, 16), (1, 1536, 64), (1, 1536, 3)

# %% 3 right: lists in place of tuples
shape_of_noise, shape_of_tokens, shape_of_ids = [1, 64, 96, 16], [1, 1536, 64], [1, 2048, 3]


# %% 4 wrong: the empty prompt first
def guided(v, scale):
    empty, prompt = np.split(v, 2)
    return empty + scale * (prompt - empty)


# %% 4 wrong: away from the prompt
def guided(v, scale):
    prompt, empty = np.split(v, 2)
    return prompt + scale * (prompt - empty)


# %% 4 wrong: the scale times the prompt's
def guided(v, scale):
    prompt, empty = np.split(v, 2)
    return scale * prompt - empty


# %% 4 wrong: prompts and empty ones by turns
def guided(v, scale):
    return v[1::2] + scale * (v[::2] - v[1::2])


# %% 4 right: as a mixture
def guided(v, scale):
    half = len(v) // 2
    return scale * v[:half] + (1 - scale) * v[half:]
