"""Redux in files: two matrices with biases, called alike by BFL and diffusers. Source: `image_embedders.py`."""

from dataclasses import asdict, fields

from minflux.checkpoints.components.base import Component, Json, Naming, take
from minflux.checkpoints.components.shapes import Shapes, Sizes, linear_shapes, under
from minflux.model.redux import ReduxConfig

UP, DOWN = "redux_up.weight", "redux_down.weight"
CONFIG_NAMES = {field.name: field.name for field in fields(ReduxConfig)}


def read_config(config: Json) -> ReduxConfig:
    """Read the config of a diffusers `ReduxImageEncoder`; raises `CheckpointError` on one we can't run."""
    return ReduxConfig(**take(config, ReduxConfig(), CONFIG_NAMES))


def write_config(cfg: ReduxConfig) -> Json:
    """Return the config that diffusers reads."""
    return {"_class_name": "ReduxImageEncoder"} | asdict(cfg)


def redux_shapes(cfg: ReduxConfig) -> Shapes:
    """Return the shape of every weight of Redux; the layer between is three times as wide as T5's tokens."""
    width, inner = cfg.txt_in_features, 3 * cfg.txt_in_features
    return under("redux_up", linear_shapes(inner, cfg.redux_dim)) | under("redux_down", linear_shapes(width, inner))


def redux_sizes(size: Sizes, beside: ReduxConfig | None) -> ReduxConfig:
    """Read Redux's config off its shapes, which show all of it."""
    return ReduxConfig(size(UP, 1), size(DOWN, 0))


def describe(cfg: ReduxConfig) -> str:
    """Return Redux's sizes in a line."""
    return f"features of {cfg.redux_dim} numbers to text tokens of {cfg.txt_in_features}"


REDUX = Component(
    name="image_embedder",
    title="Redux",
    stem="diffusion_pytorch_model",
    library=("diffusers", "ReduxImageEncoder"),
    config=ReduxConfig,
    read_config=read_config,
    write_config=write_config,
    describe=describe,
    shapes=redux_shapes,
    sizes=redux_sizes,
    namings=(Naming("bfl", "BFL's names", (UP,)),),
    own="bfl",
    stage="text",
)
