"""What a model has beside its weights, for files that come without it: tokenizers, and the scheduler's settings.

Both are FLUX.1's. The settings are four numbers. The tokenizers are vocabularies that others own, so they don't ship
with minflux: they are found beside the files, in a folder that was named, in the cache of `huggingface_hub`, or are
fetched, once.
"""

from pathlib import Path

from minflux.checkpoints import hub
from minflux.checkpoints.components.flux import variant
from minflux.checkpoints.loose import TOKENIZERS
from minflux.checkpoints.open import Checkpoint
from minflux.errors import CheckpointError
from minflux.inference.hints import Report, tell
from minflux.inference.text import Tokenizer
from minflux.model.clip import CLIP_L, CLIPConfig
from minflux.model.flux import FluxConfig
from minflux.model.t5 import T5_XXL, T5Config
from minflux.sampling.timesteps import Schedule

# Source: scheduler/scheduler_config.json of black-forest-labs/FLUX.1-dev and FLUX.1-schnell.
DEV_SCHEDULE = Schedule(shift=3.0, use_dynamic_shifting=True)
SCHNELL_SCHEDULE = Schedule(shift=1.0)

PATTERNS = [f"{name}/*" for name in TOKENIZERS]
OFFLINE = "--tokenizer FOLDER takes them from any FLUX.1 model's folder"


def usual_schedule(path: Path, cfg: FluxConfig, report: Report | None) -> Schedule:
    """Return the schedule of FLUX.1-dev, or of FLUX.1-schnell for a transformer that takes no guidance.

    For one of other sizes than theirs, whose own schedule can't be known, that is reported.
    """
    name, schedule = ("dev", DEV_SCHEDULE) if cfg.guidance_embed else ("schnell", SCHNELL_SCHEDULE)
    if variant(cfg).startswith("of its own size"):
        tell(f"{path}: no scheduler's settings beside it: its steps are spread as FLUX.1-{name}'s", report)
    return schedule


# -- tokenizers ----------------------------------------------------------------------------------------------


def read_tokenizers(checkpoint: Checkpoint, clip: CLIPConfig, t5: T5Config, report: Report | None) -> list[Tokenizer]:
    """Read both tokenizers of a model, CLIP's and T5's, for their text encoders."""
    folders = tokenizer_folders(checkpoint, clip, t5, report)
    sizes = vocab_sizes(clip, t5)
    return [Tokenizer.from_folder(folders[name], sizes[name]) for name in TOKENIZERS]


def tokenizer_folders(checkpoint: Checkpoint, clip: CLIPConfig, t5: T5Config, report: Report | None) -> dict[str, Path]:
    """Map names to the folders of a model's tokenizers; where it has none, FLUX.1's own, which may be fetched."""
    folders = find_tokenizers(checkpoint)
    lacking = [name for name in TOKENIZERS if name not in folders]
    if lacking:
        check_vocabularies(checkpoint.path, lacking, vocab_sizes(clip, t5))
        shared = cached_tokenizers() or fetch_tokenizers(checkpoint.path, report)
        folders |= {name: shared / name for name in lacking}
    return folders


def vocab_sizes(clip: CLIPConfig, t5: T5Config) -> dict[str, int]:
    """Map the tokenizers' names to how many tokens their text encoders know."""
    return dict(zip(TOKENIZERS, (clip.vocab_size, t5.vocab_size), strict=True))


def find_tokenizers(checkpoint: Checkpoint) -> dict[str, Path]:
    """Map names to the folders of a model's tokenizers: those that were named, else those beside its weights."""
    beside = {name: checkpoint.folder / name for name in TOKENIZERS}
    return {name: path for name, path in (beside | checkpoint.tokenizers).items() if path.is_dir()}


def check_vocabularies(path: Path, lacking: list[str], found: dict[str, int]) -> None:
    """Raise `CheckpointError` for a text encoder with another vocabulary than FLUX.1's, and no tokenizer beside it."""
    usual = vocab_sizes(CLIP_L, T5_XXL)
    for name in lacking:
        if found[name] != usual[name]:
            raise CheckpointError(
                f"{path}: expected the folder {name} beside it, for a text encoder of {found[name]} tokens "
                f"(FLUX.1's has {usual[name]}); found none: put it there, or name a folder that holds it with "
                "--tokenizer"
            )


def cached_tokenizers() -> Path | None:
    """Return a folder with both tokenizers in the cache of `huggingface_hub`, of any FLUX.1 that it holds, or None."""
    for name in hub.NAMES.values():
        try:
            folder = hub.cached(name)
        except CheckpointError:
            continue
        if all((folder / tokenizer / "tokenizer_config.json").is_file() for tokenizer in TOKENIZERS):
            return folder
    return None


def fetch_tokenizers(path: Path, report: Report | None) -> Path:
    """Fetch FLUX.1's tokenizers from the Hub, and return their folder; it is said before."""
    name = hub.NAMES["schnell"]
    tell(f"{path}: no tokenizers beside it: fetching FLUX.1's, 5 MB, from {name} on the Hugging Face Hub", report)
    try:
        return hub.fetch(name, PATTERNS)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {OFFLINE}") from error
