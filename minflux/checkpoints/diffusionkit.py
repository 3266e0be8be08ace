"""Read transformers of FLUX.1 and SD3 as DiffusionKit saves them: other names, and joint matrices in parts.

    multimodal_transformer_blocks.N.image_transformer_block.attn.{q,k,v}_proj    double_blocks.N.img_attn.qkv, by rows
    unified_transformer_blocks.N.transformer_block.attn.{q,k,v}_proj, mlp.fc1    single_blocks.N.linear1, by rows
    unified_transformer_blocks.N.transformer_block.attn.o_proj, mlp.fc2          single_blocks.N.linear2, by columns

It has no biases of the keys: they are zeros here, and the images are others than those of the model that it was made
from. The bias of linear2 is there twice, and added once. Parts are joined as they lie, packed to 4 bits or not. An SD3
has double blocks alone; its kernel of patches lies as MLX has kernels, (out, 2, 2, in), and its positions without a
batch. Source: argmaxinc/DiffusionKit `mlx/model_io.py`, `mlx/mmdit.py`.
"""

import re
from dataclasses import dataclass, field, replace

import numpy as np

from minflux.checkpoints.components.flux import COMFY
from minflux.checkpoints.components.renaming import Rules, joint_name, rename
from minflux.checkpoints.formats.dtypes import DTYPES
from minflux.checkpoints.formats.entry import Stored
from minflux.checkpoints.formats.parts import Found
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import CheckpointError

PATCHES, POSITIONS = "patch_in.weight", "pos_embed"
SINGLE = "unified_transformer_blocks.#.transformer_block"


def stream_rules(theirs: str, ours: str) -> Rules:
    """List DiffusionKit's names in one stream of a double block beside BFL's."""
    old, new = f"multimodal_transformer_blocks.#.{theirs}_transformer_block", f"double_blocks.#.{ours}"
    return (
        (f"{old}.adaLN_modulation.layers.1", f"{new}_mod.lin"),
        (f"{old}.attn.q_proj", f"{new}_attn.qkv@0"),
        (f"{old}.attn.k_proj", f"{new}_attn.qkv@1"),
        (f"{old}.attn.v_proj", f"{new}_attn.qkv@2"),
        (f"{old}.attn.o_proj", f"{new}_attn.proj"),
        (f"{old}.qk_norm.q_norm.weight", f"{new}_attn.norm.query_norm.scale"),
        (f"{old}.qk_norm.k_norm.weight", f"{new}_attn.norm.key_norm.scale"),
        (f"{old}.mlp.fc1", f"{new}_mlp.0"),
        (f"{old}.mlp.fc2", f"{new}_mlp.2"),
    )


# (DiffusionKit, ours, which are BFL's). # is a number, which is kept. qkv@1 is part 1 of the joint matrix qkv.
RULES: Rules = (
    *stream_rules("image", "img"),
    *stream_rules("text", "txt"),
    (f"{SINGLE}.adaLN_modulation.layers.1", "single_blocks.#.modulation.lin"),
    (f"{SINGLE}.attn.q_proj", "single_blocks.#.linear1@0"),
    (f"{SINGLE}.attn.k_proj", "single_blocks.#.linear1@1"),
    (f"{SINGLE}.attn.v_proj", "single_blocks.#.linear1@2"),
    (f"{SINGLE}.mlp.fc1", "single_blocks.#.linear1@3"),
    (f"{SINGLE}.attn.o_proj", "single_blocks.#.linear2@0"),
    (f"{SINGLE}.mlp.fc2", "single_blocks.#.linear2@1"),
    (f"{SINGLE}.qk_norm.q_norm.weight", "single_blocks.#.norm.query_norm.scale"),
    (f"{SINGLE}.qk_norm.k_norm.weight", "single_blocks.#.norm.key_norm.scale"),
    ("x_embedder.proj", "img_in"),
    ("context_embedder", "txt_in"),
    ("t_embedder", "time_in"),
    ("y_embedder", "vector_in"),
    ("mlp.layers.0", "in_layer"),
    ("mlp.layers.2", "out_layer"),
    ("adaLN_modulation.layers.1", "adaLN_modulation.1"),
)
SD3_RULES: Rules = (("x_embedder.proj", "patch_in"), ("x_pos_embedder.pos_embed.weight", POSITIONS), *RULES)
MARK = re.compile(r"multimodal_transformer_blocks\.\d+\.")
FLUX_MARK = re.compile(r"unified_transformer_blocks\.\d+\.")  # SD3 has no such blocks
PARTS = {"qkv": 3, "linear1": 4, "linear2": 2}
BY_COLUMNS = re.compile(r"linear2\.(weight|scales|biases)$")
BIAS_AGAIN = "linear2@1.bias"  # another copy of linear2@0's
KEYS_BIAS = re.compile(r"(.*(?:qkv|linear1))@0(\.bias)")  # of the queries, as long as the keys'
LOST = (
    "saved by DiffusionKit, which leaves out the biases of the keys: they are taken as zeros, so that it draws other "
    "images than the model that it was made from"
)


@dataclass(frozen=True)
class Zeros(Stored):
    """An array of zeros that no file holds."""

    @property
    def pieces(self) -> list[Stored]:
        """Return no array: nothing of it lies in a file."""
        return []

    def read_bytes(self) -> np.ndarray:
        """Return its bytes, uint8."""
        return np.zeros(self.size, np.uint8)


@dataclass(frozen=True)
class Joined(Stored):
    """An array whose parts lie apart in a file: one under the other, or, with `axis` 1, side by side."""

    parts: list[Stored] = field(kw_only=True)
    axis: int = field(kw_only=True)

    @property
    def pieces(self) -> list[Stored]:
        """List the arrays in the file that it is made of."""
        return [piece for part in self.parts for piece in part.pieces]

    def read_bytes(self) -> np.ndarray:
        """Return its bytes, uint8, from memory where they are held, else from its parts'."""
        if self.held is not None:
            return self.held
        rows = [part.read_bytes().reshape(*part.shape[: self.axis], -1) for part in self.parts]
        return np.concatenate(rows, axis=self.axis).reshape(-1)


@dataclass(frozen=True)
class Turned(Stored):
    """MLX's kernel of a convolution, (O, H, W, I), as PyTorch has it, (O, I, H, W)."""

    kernel: Stored = field(kw_only=True)

    def read_bytes(self) -> np.ndarray:
        """Return its bytes, uint8, from memory where they are held, else from the file."""
        if self.held is not None:
            return self.held
        numbers = self.kernel.read_bytes().reshape(*self.kernel.shape, -1)  # (O, H, W, I, bytes of a number)
        return np.ascontiguousarray(numbers.transpose(0, 3, 1, 2, 4)).reshape(-1)


# -- a file --------------------------------------------------------------------------------------------------


def as_ours(found: Found) -> Found:
    """Return the contents of a file that DiffusionKit saved under our names; those of any other file as they are.

    Raises `CheckpointError` where a part of a joint matrix is missing, or doesn't fit the others.
    """
    bare = {name.removeprefix(COMFY): stored for name, stored in found.items()}
    if not any(map(MARK.match, bare)):
        return found
    if any(map(FLUX_MARK.match, bare)):
        spelled = {rename(name, RULES): as_matrix(stored) for name, stored in bare.items()}
    else:
        spelled = {rename(name, SD3_RULES): stored for name, stored in bare.items()}
        spelled = {name: of_sd3(name, stored) for name, stored in spelled.items()}
    spelled = {name: stored for name, stored in spelled.items() if not name.endswith(BIAS_AGAIN)}
    return joined(keys_biases(spelled) | spelled)


def keys_biases(spelled: Found) -> Found:
    """Return zeros for the biases of every block's keys."""
    queries = {match: spelled[match[0]] for match in map(KEYS_BIAS.fullmatch, spelled) if match}
    return {f"{match[1]}@1{match[2]}": Zeros(q.path, q.dtype, q.shape, q.start) for match, q in queries.items()}


def joined(spelled: Found) -> Found:
    """Return contents with each joint matrix in one piece."""
    groups: dict[str, Found] = {}
    for name, stored in spelled.items():
        groups.setdefault(joint_name(name), {})[name] = stored
    return {name: join(name, [group[part] for part in sorted(group)]) for name, group in groups.items()}


def join(name: str, parts: list[Stored]) -> Stored:
    """Make one entry of the parts of a joint matrix; raises `CheckpointError` where they don't fit together."""
    count = expected_parts(name)
    if count == 1:
        return parts[0]
    first, axis = parts[0], 1 if BY_COLUMNS.search(name) else 0
    kept = {part.shape[:axis] + part.shape[axis + 1 :] for part in parts}
    if len(parts) != count or len(kept) != 1 or len({part.dtype for part in parts}) != 1 or first.dtype not in DTYPES:
        shapes = " and ".join(f"{part.dtype} {part.shape}" for part in parts)
        raise CheckpointError(f"{first.path}: {name}: expected {count} parts that fit together, found {shapes}")
    length = sum(part.shape[axis] for part in parts)
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    return Joined(first.path, first.dtype, shape, first.start, parts=parts, axis=axis)


def expected_parts(name: str) -> int:
    """Return of how many parts DiffusionKit has a weight, by BFL's name."""
    stem, _, leaf = name.rpartition(".")
    is_one_bias = leaf == "bias" and stem.endswith("linear2")
    return 1 if is_one_bias else PARTS.get(stem.rpartition(".")[2], 1)


def as_matrix(stored: Stored) -> Stored:
    """Return a convolution of 1 × 1 pixels, (O, 1, 1, I), as the matrix (O, I) that it is."""
    if len(stored.shape) == 4 and stored.shape[1:3] == (1, 1):
        return replace(stored, shape=(stored.shape[0], stored.shape[3]))
    return stored


def of_sd3(name: str, stored: Stored) -> Stored:
    """Return an SD3's array as other files have it: the kernel of its patches turned, its positions in a batch."""
    if name == POSITIONS:
        return replace(stored, shape=(1, *stored.shape))
    if name != PATCHES or len(stored.shape) != 4 or stored.dtype not in DTYPES:
        return stored
    out, height, width, channels = stored.shape
    return Turned(stored.path, stored.dtype, (out, channels, height, width), stored.start, kernel=stored)


# -- what is lost --------------------------------------------------------------------------------------------


def what_is_lost(stored: StoredComponent) -> list[str]:
    """Say what a component's file lacks of the weights that it was made from."""
    joints = [tensor for tensor in stored.tensors.values() if isinstance(tensor, Joined)]
    return [LOST] if any(isinstance(part, Zeros) for joint in joints for part in joint.parts) else []
