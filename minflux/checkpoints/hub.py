"""Models by name from the Hugging Face Hub, through its own library, which keeps them in its cache.

A file that is cut off goes on where it stopped while the command runs. Started again, it fetches the files that are
missing, an unfinished one from its beginning.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from minflux.errors import CheckpointError

NAMES = {"schnell": "black-forest-labs/FLUX.1-schnell", "dev": "black-forest-labs/FLUX.1-dev"}
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

# What a model folder needs; repositories hold the same weights a second time as single files, 24 GB of them.
FILES = (
    "model_index.json", "minflux.json", "scheduler/*.json", "tokenizer/*", "tokenizer_2/*", "tokenizer_3/*",
    *(f"{part}/{file}" for part in ("transformer", "unet", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
      for file in ("config.json", "*.safetensors", "*.safetensors.index.json")),
)  # fmt: skip

REDUX_FILES = (  # of FLUX.1-Redux-dev
    "model_index.json", "feature_extractor/*.json",
    *(f"{part}/{file}" for part in ("image_embedder", "image_encoder")
      for file in ("config.json", "*.safetensors", "*.safetensors.index.json")),
)  # fmt: skip

CONTROLNET_FILES = "config.json", "diffusion_pytorch_model*.safetensors*"

# enough to know which settings of an image a model can honour
SETTINGS = "minflux.json", "model_index.json", "transformer/config.json", "unet/config.json"


def repository(model: str) -> str | None:
    """Return the repository that a name stands for, "schnell", "dev" or OWNER/NAME; None if it is none of these."""
    is_name = REPOSITORY.fullmatch(model) and not model.endswith((".safetensors", ".gguf"))
    return NAMES.get(model) or (model if is_name else None)


def files_without(components: Sequence[str]) -> list[str]:
    """List the patterns of what a model folder needs, but for the weights of some components."""
    weights = tuple(f"{name}/*" for name in components)
    return [pattern for pattern in FILES if not pattern.startswith(weights)]


def cached(name: str, files: Sequence[str] = FILES) -> Path:
    """Return a repository's folder in the cache without asking the Hub; raises `CheckpointError` if it isn't there."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(files), local_files_only=True))
    except (errors.LocalEntryNotFoundError, ValueError):  # or a name that the Hub does not allow
        raise CheckpointError(
            f"{name}: no such folder here, nor in the cache of huggingface_hub; `minflux generate --model {name}` "
            "fetches it"
        ) from None


def fetch(name: str, files: Sequence[str] = FILES) -> Path:
    """Fetch a repository's model, or what is missing of it, and return its folder in the cache.

    files: patterns of the paths to fetch.
    `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they do for `huggingface_hub`. Raises `CheckpointError` that
    says what to do when the repository isn't there, is gated, or can't be reached.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{name}: is gated: accept its licence on https://huggingface.co/{name}, then run `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{name}: no such folder here, and no such repository on the Hugging Face Hub; if it is a private one, run "
            "`hf auth login`"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise CheckpointError(
            f"{name}: is not in the cache of huggingface_hub, and the Hub can't be reached; check the network, or "
            "unset HF_HUB_OFFLINE"
        ) from None
    except Exception as error:  # the library lets through what its parts raise: HTTP, transfer in Rust, disk
        raise CheckpointError(f"{name}: fetching it from the Hugging Face Hub failed: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
