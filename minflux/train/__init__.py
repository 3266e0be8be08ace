"""The emoji-scenes world, the losses and loops that learn it, and the reader that marks the result."""
