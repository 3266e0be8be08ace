"""What MLX may hold of an Apple GPU's memory, which is the machine's own.

Memory that is not wired may be swapped out, or made ready anew at each step, when a model takes much of the machine.
And MLX keeps what is freed, by default up to more than all there is: beside weights that are read and forgotten that
crowds out the system's own cache of their files. Source: MLX's documentation of `set_wired_limit` and
`set_cache_limit`.
"""

from minflux.backend.base import Backend

CACHE_SHARE = 4  # freed memory may be a quarter of what the GPU may use


def set_limits(nx: Backend) -> None:
    """Wire as much memory as the system recommends, and bound what is kept of freed memory; only with Metal."""
    if nx.name != "mlx" or not nx.xp.metal.is_available():
        return
    most = nx.xp.device_info()["max_recommended_working_set_size"]
    nx.xp.set_wired_limit(most)  # more than this is an error
    nx.xp.set_cache_limit(most // CACHE_SHARE)
