"""What a block of FLUX.1 asks of a GPU, counted from MLX's graph where there is no GPU to time it on.

graph.py     a function's graph as MLX exports it, without computing anything
fusion.py    which elementwise ops `mx.compile` makes one kernel of
kernels.py   the kernels that a graph launches on a GPU, and the bytes that each reads and writes
blocks.py    minflux's two blocks, and the inputs of all
peers.py     mflux's and mlx-examples' blocks, where they are installed
limit.py     what the same blocks need at least
"""
