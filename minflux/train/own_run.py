"""`minflux train lora` and `minflux train finetune`: a model and a folder of images in, a LoRA or a model out."""

import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from minflux.arrays import Tree
from minflux.backend import get_backend
from minflux.checkpoints.components import TRANSFORMER
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.open import open_model, some_of
from minflux.checkpoints.quantise import SCALES
from minflux.checkpoints.tree import flatten, tree, tree_map
from minflux.errors import ArgumentError
from minflux.inference.load import save_model
from minflux.model.hooks import RunBlock, run
from minflux.train.adapters import TARGETS, as_branches, find_adapters, init_adapters, save_lora
from minflux.train.captioned import read_folder
from minflux.train.init_weights import init_weights
from minflux.train.own import Run, claim, settings_of
from minflux.train.own_data import Folders, OwnTraining, Subject, open_subject, prepare, small_images
from minflux.train.recompute import is_lora, recompute

LARGE = 10**9  # numbers in a transformer whose blocks are computed twice unless told otherwise
TOKENIZERS = "tokenizer", "tokenizer_2"


@dataclass(frozen=True)
class LoraSettings:
    """A LoRA's rank, α, and which matrices get one (see `find_adapters`).

    base: the dtype that the frozen model is computed in; None for the file's own on a GPU, float32 elsewhere. A
    quantised model stays as it is, and its scales get that dtype.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    base: str | None = None

    def __post_init__(self):
        if not 1 <= self.rank <= 1024 or not 0 < self.alpha < 1e6:
            raise ArgumentError(f"expected a rank from 1 to 1024 and an alpha above 0, got {self.rank}, {self.alpha}")

    @property
    def scale(self) -> float:
        """Return what B A is multiplied by: α / r."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Task:
    """What a command asks for: a model, a folder of images, where caches lie, and what is shown on the way.

    known: a folder of what the model knows already and shall not forget. recompute: whether blocks are computed twice
    to save memory; None for large models alone.
    """

    model: str
    images: Path
    cache: Path
    how: OwnTraining
    known: Path | None = None
    prompts: tuple[str, ...] = ()
    every: int = 200
    recompute: bool | None = None

    def __post_init__(self):
        if self.every < 1:
            raise ArgumentError(f"every must be at least 1, got {self.every}")

    def folders(self) -> list[Path]:
        """List the folders of images."""
        return [self.images] if self.known is None else [self.images, self.known]

    def opened(self, output: Path) -> tuple[Subject, Folders, OwnTraining]:
        """Look at the images, and open the model; raises `ArgumentError` for a run among the images."""
        check_apart(output, self.folders())
        images = [read_folder(folder) for folder in self.folders()]
        subject = open_subject(open_model(self.model, fetch=True), get_backend("mlx"), self.model, self.cache)
        how = self.how.suiting(subject.pipe.defaults)
        warn_of_small(images, how.side)
        return subject, images, how

    def run_block(self, subject: Subject, is_trained: Callable[[str], bool]) -> RunBlock:
        """Return how blocks are run."""
        numbers = sum(map(math.prod, flux_shapes(subject.pipe.flux[0]).values()))
        wanted = numbers > LARGE if self.recompute is None else self.recompute
        return recompute(subject.pipe.nx, is_trained) if wanted else run


def check_apart(output: Path, folders: Sequence[Path]) -> None:
    """Raise `ArgumentError` where a run would write its samples among the images."""
    for folder in folders:
        if output.resolve().is_relative_to(folder.resolve()):
            raise ArgumentError(f"--output: {output} would be written among the images; choose a place outside")


def warn_of_small(folders: Folders, side: int) -> None:
    """Warn of images that have to be enlarged."""
    small = [image.path.name for images in folders for image in small_images(images, side)]
    if small:
        warnings.warn(f"{len(small)} images are smaller than they are trained at: {some_of(small)}", stacklevel=3)


def train_lora(task: Task, lora: LoraSettings, output: Path) -> None:
    """Train a LoRA, and write it to `output`; the run's folder has the same name without its ending."""
    folder = output.with_suffix("")
    subject, images, how = task.opened(folder)
    nx, cfg = subject.pipe.nx, subject.pipe.flux[0]
    adapters = find_adapters(cfg, lora.targets)
    claim(folder, settings_of(subject, images, how, **asdict(lora) | {"targets": list(lora.targets)}))
    data = prepare(subject, images, how)
    base = flatten(subject.read(TRANSFORMER.name, lora.base))
    dtype = "bfloat16" if nx.on_gpu else None

    def weights(p: Tree) -> Tree:
        return tree(base | as_branches(adapters, flatten(p), lora.scale, base))

    def save(path: Path, p: Tree) -> None:
        save_lora(path.with_name(f"{path.name}.safetensors"), nx, flatten(p), lora.scale, dtype)

    start = tree({name: nx.array(x) for name, x in init_adapters(adapters, lora.rank, task.how.seed).items()})
    own = Run(folder, data, weights, save, task.prompts, task.every)
    save(folder, own.train(start, task.run_block(subject, is_lora)))


def finetune(task: Task, output: Path, from_nothing: bool = False) -> None:
    """Train the whole transformer, from its weights or from random ones, and write the model to output/model."""
    subject, images, how = task.opened(output)
    cfg = subject.pipe.flux[0]
    if not from_nothing:
        check_floats(subject)
    claim(output, settings_of(subject, images, how, from_nothing=from_nothing))
    data = prepare(subject, images, how)
    start = first_weights(subject, how.seed, from_nothing)
    own = Run(output, data, weights=lambda p: p, prompts=task.prompts, every=task.every)
    trained = own.train(start, task.run_block(subject, lambda name: True))
    save_model(replace(subject.with_encoders(), flux=(cfg, trained)), output / "model")
    for name in TOKENIZERS:
        shutil.copytree(subject.checkpoint.folder / name, output / "model" / name, dirs_exist_ok=True)


def check_floats(subject: Subject) -> None:
    """Raise `ArgumentError` for a transformer of packed matrices."""
    if any(name.endswith(f".{SCALES}") for name in subject.checkpoint.take(TRANSFORMER.name).tensors):
        raise ArgumentError("a quantised model can't be trained whole: take one of floats, or train a LoRA")


def first_weights(subject: Subject, seed: int, from_nothing: bool) -> Tree:
    """Return the weights that all of a transformer is trained from, float32."""
    nx, cfg = subject.pipe.nx, subject.pipe.flux[0]
    if from_nothing:
        return tree_map(nx.array, init_weights(flux_shapes(cfg), seed))
    return subject.read(TRANSFORMER.name, "float32")
