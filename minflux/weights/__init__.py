"""Checkpoints: names to weight trees and back, reading and writing files."""

from minflux.weights.files import read_safetensors, write_safetensors, written_whole
from minflux.weights.folder import save_component
from minflux.weights.names import (
    flux_to_bfl,
    flux_to_diffusers,
    to_channels_last,
    to_torch_layout,
    vae_to_bfl,
    vae_to_diffusers,
)
from minflux.weights.parts import load_component
from minflux.weights.shapes import clip_shapes, flux_shapes, t5_shapes, vae_shapes
from minflux.weights.tree import flatten, leaves, tree, tree_map

__all__ = [
    "clip_shapes",
    "flatten",
    "flux_shapes",
    "flux_to_bfl",
    "flux_to_diffusers",
    "leaves",
    "load_component",
    "read_safetensors",
    "save_component",
    "t5_shapes",
    "to_channels_last",
    "to_torch_layout",
    "tree",
    "tree_map",
    "vae_shapes",
    "vae_to_bfl",
    "vae_to_diffusers",
    "write_safetensors",
    "written_whole",
]
