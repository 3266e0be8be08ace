# %% 1 wrong: shift and scale of the last layer are not exchanged
def last_from_diffusers(flat):
    return {f"final_layer.adaLN_modulation.1.{leaf}": flat[f"norm_out.linear.{leaf}"] for leaf in ("weight", "bias")}


# %% 1 wrong: the two streams are exchanged
right = double_from_diffusers


def double_from_diffusers(flat, i):
    swap = {"img": "txt", "txt": "img"}
    return {swap[name[:3]] + name[3:]: array for name, array in right(flat, i).items()}


# %% 1 wrong: q, k, v in another order
right = double_from_diffusers


def double_from_diffusers(flat, i):
    found = right(flat, i)
    for name in [name for name in found if ".qkv." in name]:
        q, k, v = np.split(found[name], 3)
        found[name] = np.concatenate([k, q, v])
    return found


# %% 1 wrong: the biases of q, k, v are forgotten
right = double_from_diffusers


def double_from_diffusers(flat, i):
    return {name: array for name, array in right(flat, i).items() if not name.endswith("qkv.bias")}


# %% 1 wrong: block 0 for every block
right = double_from_diffusers


def double_from_diffusers(flat, i):
    return right(flat, 0)


# %% 2 wrong: every model has a guidance embedder
def count_names(config):
    return 24 * config.depth + 8 * config.depth_single_blocks + 20


# %% 2 wrong: biases are forgotten around the blocks
def count_names(config):
    return 24 * config.depth + 8 * config.depth_single_blocks + 2 + 2 * (3 if config.guidance_embed else 2) + 2


# %% 2 wrong: the last layer has one linear map
def count_names(config):
    return 24 * config.depth + 8 * config.depth_single_blocks + 4 + 4 * (3 if config.guidance_embed else 2) + 2


# %% 2 wrong: 780, from the text
def count_names(config):
    return 780


# %% 3 wrong: the first that is off by more than 1e-4
def first_wrong(ours, theirs):
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if np.linalg.norm(a - b) / np.linalg.norm(b) > 1e-4:
            return i
    return None


# %% 3 wrong: the first that is off by more than 1%
def first_wrong(ours, theirs):
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if np.linalg.norm(a - b) / np.linalg.norm(b) > 0.009:
            return i
    return None


# %% 3 wrong: where it is off most
def first_wrong(ours, theirs):
    return int(np.argmax([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(ours, theirs, strict=True)]))


# %% 3 wrong: the difference itself, which grows with the numbers
def first_wrong(ours, theirs):
    before = 1e-6
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        error = np.linalg.norm(a - b) / np.sqrt(b.size)
        if error > 100 * before:
            return i
        before = error
    return None


# %% 3 wrong: block 0 is never looked at
def first_wrong(ours, theirs):
    errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(ours, theirs, strict=True)]
    return next((i for i in range(1, len(errors)) if errors[i] > 100 * errors[i - 1]), None)


# %% 3 right: by the largest difference
def first_wrong(ours, theirs):
    errors = [1e-6] + [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True)]
    return next((i for i in range(len(errors) - 1) if errors[i + 1] > 100 * errors[i]), None)


# %% 4 wrong: the picture first in the joint list
def flux(p, img, txt, vec, pe):
    img, txt = linear(img, **p["img_in"]), linear(txt, **p["txt_in"])
    for block in p["double_blocks"]:
        img, txt = double_block(block, img, txt, vec, pe)
    x = np.concatenate([img, txt], axis=1)
    for block in p["single_blocks"]:
        x = single_block(block, x, vec, pe)
    last = p["final_layer"]
    shift, scale = modulation(last["adaLN_modulation"]["1"], vec, 2)
    return linear(modulate(x[:, : img.shape[1]], shift, scale), **last["linear"])


# %% 4 wrong: the first tokens are kept, which are words
def flux(p, img, txt, vec, pe):
    img, txt = linear(img, **p["img_in"]), linear(txt, **p["txt_in"])
    for block in p["double_blocks"]:
        img, txt = double_block(block, img, txt, vec, pe)
    x = np.concatenate([txt, img], axis=1)
    for block in p["single_blocks"]:
        x = single_block(block, x, vec, pe)
    last = p["final_layer"]
    shift, scale = modulation(last["adaLN_modulation"]["1"], vec, 2)
    return linear(modulate(x[:, : img.shape[1]], shift, scale), **last["linear"])


# %% 4 wrong: the text is never cut off
def flux(p, img, txt, vec, pe):
    img, txt = linear(img, **p["img_in"]), linear(txt, **p["txt_in"])
    for block in p["double_blocks"]:
        img, txt = double_block(block, img, txt, vec, pe)
    x = np.concatenate([txt, img], axis=1)
    for block in p["single_blocks"]:
        x = single_block(block, x, vec, pe)
    last = p["final_layer"]
    shift, scale = modulation(last["adaLN_modulation"]["1"], vec, 2)
    return linear(modulate(x, shift, scale), **last["linear"])


# %% 4 wrong: diffusers' order, scale and shift
def flux(p, img, txt, vec, pe):
    img, txt = linear(img, **p["img_in"]), linear(txt, **p["txt_in"])
    for block in p["double_blocks"]:
        img, txt = double_block(block, img, txt, vec, pe)
    x = np.concatenate([txt, img], axis=1)
    for block in p["single_blocks"]:
        x = single_block(block, x, vec, pe)
    last = p["final_layer"]
    scale, shift = modulation(last["adaLN_modulation"]["1"], vec, 2)
    return linear(modulate(x[:, txt.shape[1] :], shift, scale), **last["linear"])


# %% 4 wrong: the last norm forgotten
def flux(p, img, txt, vec, pe):
    img, txt = linear(img, **p["img_in"]), linear(txt, **p["txt_in"])
    for block in p["double_blocks"]:
        img, txt = double_block(block, img, txt, vec, pe)
    x = np.concatenate([txt, img], axis=1)
    for block in p["single_blocks"]:
        x = single_block(block, x, vec, pe)
    return linear(x[:, txt.shape[1] :], **p["final_layer"]["linear"])


# %% 4 wrong: the second double block gets the first one's input
def flux(p, img, txt, vec, pe):
    img, txt = linear(img, **p["img_in"]), linear(txt, **p["txt_in"])
    for block in p["double_blocks"]:
        new_img, new_txt = double_block(block, img, txt, vec, pe)
    x = np.concatenate([new_txt, new_img], axis=1)
    for block in p["single_blocks"]:
        x = single_block(block, x, vec, pe)
    last = p["final_layer"]
    shift, scale = modulation(last["adaLN_modulation"]["1"], vec, 2)
    return linear(modulate(x[:, txt.shape[1] :], shift, scale), **last["linear"])


# %% 4 right: cut off after the last norm
def flux(p, img, txt, vec, pe):
    words = txt.shape[1]
    img, txt = linear(img, **p["img_in"]), linear(txt, **p["txt_in"])
    for block in p["double_blocks"]:
        img, txt = double_block(block, img, txt, vec, pe)
    x = np.concatenate([txt, img], axis=1)
    for block in p["single_blocks"]:
        x = single_block(block, x, vec, pe)
    shift, scale = modulation(p["final_layer"]["adaLN_modulation"]["1"], vec, 2)
    return linear(modulate(x, shift, scale), **p["final_layer"]["linear"])[:, words:]
