"""Checkpoints: names to weight trees and back, reading and writing files."""

from minflux.weights.tree import flatten, leaves, tree, tree_map

__all__ = ["flatten", "leaves", "tree", "tree_map"]
