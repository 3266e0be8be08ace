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


# %% 3 wrong: the picture first
def double_block(p, img, txt, vec, pe):
    img_mod, txt_mod = (modulation(p[f"{s}_mod"]["lin"], vec, 6) for s in ("img", "txt"))
    pairs = zip(stream_qkv(p["img_attn"], img, img_mod), stream_qkv(p["txt_attn"], txt, txt_mod), strict=True)
    q, k, v = (np.concatenate(pair, axis=2) for pair in pairs)
    mixed = merge_heads(attention(turn(q, pe), turn(k, pe), v))
    img_heard, txt_heard = np.split(mixed, [img.shape[1]], axis=1)
    img = finish_stream(p["img_attn"], p["img_mlp"], img, img_heard, img_mod)
    return img, finish_stream(p["txt_attn"], p["txt_mlp"], txt, txt_heard, txt_mod)


# %% 3 wrong: one set of weights for both
def double_block(p, img, txt, vec, pe):
    mod = modulation(p["img_mod"]["lin"], vec, 6)
    pairs = zip(stream_qkv(p["img_attn"], txt, mod), stream_qkv(p["img_attn"], img, mod), strict=True)
    q, k, v = (np.concatenate(pair, axis=2) for pair in pairs)
    mixed = merge_heads(attention(turn(q, pe), turn(k, pe), v))
    txt_heard, img_heard = np.split(mixed, [txt.shape[1]], axis=1)
    img = finish_stream(p["img_attn"], p["img_mlp"], img, img_heard, mod)
    return img, finish_stream(p["img_attn"], p["img_mlp"], txt, txt_heard, mod)


# %% 3 wrong: an attention for each stream
def double_block(p, img, txt, vec, pe):
    img_mod, txt_mod = (modulation(p[f"{s}_mod"]["lin"], vec, 6) for s in ("img", "txt"))
    words = txt.shape[1]
    img_pe, txt_pe = tuple(x[:, :, words:] for x in pe), tuple(x[:, :, :words] for x in pe)
    q, k, v = stream_qkv(p["img_attn"], img, img_mod)
    img_heard = merge_heads(attention(turn(q, img_pe), turn(k, img_pe), v))
    q, k, v = stream_qkv(p["txt_attn"], txt, txt_mod)
    txt_heard = merge_heads(attention(turn(q, txt_pe), turn(k, txt_pe), v))
    img = finish_stream(p["img_attn"], p["img_mlp"], img, img_heard, img_mod)
    return img, finish_stream(p["txt_attn"], p["txt_mlp"], txt, txt_heard, txt_mod)


# %% 3 wrong: values are turned too
def double_block(p, img, txt, vec, pe):
    img_mod, txt_mod = (modulation(p[f"{s}_mod"]["lin"], vec, 6) for s in ("img", "txt"))
    pairs = zip(stream_qkv(p["txt_attn"], txt, txt_mod), stream_qkv(p["img_attn"], img, img_mod), strict=True)
    q, k, v = (turn(np.concatenate(pair, axis=2), pe) for pair in pairs)
    mixed = merge_heads(attention(q, k, v))
    txt_heard, img_heard = np.split(mixed, [txt.shape[1]], axis=1)
    img = finish_stream(p["img_attn"], p["img_mlp"], img, img_heard, img_mod)
    return img, finish_stream(p["txt_attn"], p["txt_mlp"], txt, txt_heard, txt_mod)


# %% 3 wrong: nothing is turned
def double_block(p, img, txt, vec, pe):
    img_mod, txt_mod = (modulation(p[f"{s}_mod"]["lin"], vec, 6) for s in ("img", "txt"))
    pairs = zip(stream_qkv(p["txt_attn"], txt, txt_mod), stream_qkv(p["img_attn"], img, img_mod), strict=True)
    q, k, v = (np.concatenate(pair, axis=2) for pair in pairs)
    mixed = merge_heads(attention(q, k, v))
    txt_heard, img_heard = np.split(mixed, [txt.shape[1]], axis=1)
    img = finish_stream(p["img_attn"], p["img_mlp"], img, img_heard, img_mod)
    return img, finish_stream(p["txt_attn"], p["txt_mlp"], txt, txt_heard, txt_mod)


# %% 3 wrong: text before picture on return
def double_block(p, img, txt, vec, pe):
    img_mod, txt_mod = (modulation(p[f"{s}_mod"]["lin"], vec, 6) for s in ("img", "txt"))
    pairs = zip(stream_qkv(p["txt_attn"], txt, txt_mod), stream_qkv(p["img_attn"], img, img_mod), strict=True)
    q, k, v = (np.concatenate(pair, axis=2) for pair in pairs)
    mixed = merge_heads(attention(turn(q, pe), turn(k, pe), v))
    txt_heard, img_heard = np.split(mixed, [txt.shape[1]], axis=1)
    img = finish_stream(p["img_attn"], p["img_mlp"], img, img_heard, img_mod)
    return finish_stream(p["txt_attn"], p["txt_mlp"], txt, txt_heard, txt_mod), img


# %% 3 right: stream by stream
def double_block(p, img, txt, vec, pe):
    streams = {"txt": txt, "img": img}
    mods = {s: modulation(p[f"{s}_mod"]["lin"], vec, 6) for s in streams}
    qkv = [stream_qkv(p[f"{s}_attn"], x, mods[s]) for s, x in streams.items()]
    q, k, v = (np.concatenate([each[i] for each in qkv], axis=2) for i in range(3))
    heard = merge_heads(attention(turn(q, pe), turn(k, pe), v))
    parts = {"txt": heard[:, : txt.shape[1]], "img": heard[:, txt.shape[1] :]}
    done = {s: finish_stream(p[f"{s}_attn"], p[f"{s}_mlp"], x, parts[s], mods[s]) for s, x in streams.items()}
    return done["img"], done["txt"]
