"""What makes files for the project: figures for its pages, and checkpoints of random weights for its tests."""
