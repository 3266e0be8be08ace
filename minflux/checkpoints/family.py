"""Which member of the FLUX.1 family a checkpoint is, where its weights' shapes don't show it."""

from collections.abc import Sequence
from pathlib import Path

from minflux.checkpoints.folder import CONFIG
from minflux.checkpoints.formats.json_files import read_json
from minflux.checkpoints.formats.safetensors import read_metadata
from minflux.checkpoints.stored import StoredComponent

PIPELINES = {  # what a model is by the class that its model_index.json names
    "FluxKontextPipeline": "FLUX.1 Kontext, which takes a reference image beside the text",
    "FluxFillPipeline": "FLUX.1 Fill, which takes a masked image beside the latents",
    "FluxControlPipeline": "FLUX.1 Canny or Depth, which takes a control image beside the latents",
    "FluxPriorReduxPipeline": "FLUX.1 Redux, an adapter for image prompts",
}
REDUX_BESIDE = f"{PIPELINES['FluxPriorReduxPipeline']}: give it beside a model, by --redux"
CONTROLNET_BESIDE = "a ControlNet for FLUX.1, which is shown a control image: give it beside a model, by --controlnet"
NAMED = {"krea": "Krea-dev", "kontext": "Kontext"}  # dev's shapes under another name


def likely_variant(path: Path, found: Sequence[StoredComponent]) -> list[str]:
    """Recognise Krea-dev and Kontext by a name, of the file, the folder, or inside, for their shapes are dev's."""
    dev = [stored for stored in found if getattr(stored.config, "guidance_embed", False)]
    names = [path.name, *(part for part in path.parts if part.startswith("models--"))]  # the Hub's cache
    for stored in dev:
        names += names_inside(stored.path)
    for name in names if dev else ():
        for word, variant in NAMED.items():
            if word in name.lower():
                return [f"named {name!r}: {variant}, it seems"]
    return []


def names_inside(path: Path) -> list[str]:
    """List what a transformer's config and its file's metadata call it."""
    config = path.with_name(CONFIG)
    names = [str(read_json(config).get("_name_or_path", ""))] if config.exists() else []
    return names + [str(value) for value in read_metadata(path).values()]
