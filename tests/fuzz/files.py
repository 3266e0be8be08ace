"""Cases of damaged files: a small model's settings, and the headers of its files, each with something wrong."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import minflux
from minflux.backend import get_backend
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.checkpoints.open import open_model
from minflux.commands.inspect import inspect
from minflux.inference.load import load_checkpoint
from minflux.inference.text import Tokenizer
from tests import tiny_model
from tests.commands.runner import run
from tests.fuzz.damage import damaged_bytes, damaged_json, header_of, with_header
from tests.fuzz.judge import Fault, check_line

TRANSFORMER = "transformer/diffusion_pytorch_model"
HEADER = 3000  # bytes at a file's beginning in which most damage is done
PROMPTS = ["a cat", "", "A  bee <pad></s> é漢🐱\x1b", "hat " * 50]
STEP = {"width": 16, "height": 16, "steps": 1}


@dataclass(frozen=True)
class Place:
    """Folders to damage files in: a model in shards, one in GGUF, a LoRA, a picture, and CLIP's bare vocabulary."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def packed(self) -> Path:
        return self.folder / "packed"

    @property
    def bare(self) -> Path:
        return self.folder / "bare"

    @property
    def lora(self) -> Path:
        return self.folder / "lora.safetensors"

    @property
    def picture(self) -> Path:
        return self.folder / "picture.png"


@dataclass(frozen=True)
class Case:
    """A file, what it holds now, and what is then done."""

    path: Path
    content: bytes
    act: Callable[[], object]

    def __call__(self) -> None:
        before = self.path.read_bytes()
        self.path.write_bytes(self.content)
        try:
            self.act()
        finally:
            self.path.write_bytes(before)

    def __repr__(self) -> str:
        was, now = self.path.read_bytes(), self.content
        same = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
        return f"{self.path.name} from byte {same}: {now[max(0, same - 40) : same + 80]!r}"


def make(folder: Path) -> Place:
    """Write the files that cases damage."""
    place = Place(folder)
    tiny_model.make(place.model)
    settings = place.model / "minflux.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | STEP))
    split(place.model)
    shutil.copytree(place.model, place.packed)
    pack(place.packed)
    shutil.copytree(place.model / "tokenizer", place.bare, ignore=shutil.ignore_patterns("tokenizer.json"))
    write_lora(place.lora)
    write_picture(place)
    return place


def split(model: Path) -> None:
    """Lay the transformer in two shards with an index, as large models are."""
    whole = model / f"{TRANSFORMER}.safetensors"
    flat = read_safetensors(whole, get_backend("numpy"))
    whole.unlink()
    weight_map = {name: f"shard-{i % 2}.safetensors" for i, name in enumerate(flat)}
    for shard in set(weight_map.values()):
        write_safetensors(whole.with_name(shard), {name: flat[name] for name in flat if weight_map[name] == shard})
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (model / f"{TRANSFORMER}.safetensors.index.json").write_text(json.dumps(index))


def pack(model: Path) -> None:
    """Put a GGUF file in the place of the transformer's shards."""
    writer = gguf.GGUFWriter(model / "flux.gguf", "flux")
    writer.add_name("small")
    for path in sorted((model / "transformer").glob("*.safetensors")):
        for name, array in read_safetensors(path, get_backend("numpy")).items():
            fits = array.ndim == 2 and array.shape[1] % 32 == 0
            kind = gguf.GGMLQuantizationType.Q8_0 if fits else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        path.unlink()
    (model / f"{TRANSFORMER}.safetensors.index.json").unlink()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_lora(path: Path) -> None:
    rng, stem = np.random.default_rng(0), "transformer.transformer_blocks.0.attn.to_q"
    arrays = {f"{stem}.lora_{side}.weight": rng.standard_normal(shape).astype(np.float32)
              for side, shape in (("A", (2, 32)), ("B", (32, 2)))}  # fmt: skip
    settings = {"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"attn.to_q": 2}, "transformer.r": 2}
    write_safetensors(path, arrays, {"lora_adapter_metadata": json.dumps(settings)})


def write_picture(place: Place) -> None:
    ended = run("generate", "a cat", "--model", place.model, "--out", place.picture, "--lora", place.lora)
    assert ended.exit_code == 0, ended.output


# -- what is done ----------------------------------------------------------------------------------------------


def use(model: Path, lora: tuple[str, ...] = ()) -> None:
    """Look into a model, load it and draw an image of its own size: it must have that size."""
    try:
        check_lines(inspect(model).text())
    except minflux.MinfluxError as error:
        check_line(str(error))
    pipe = load_checkpoint(open_model(model), get_backend("numpy"), "small", lora=lora)
    image = pipe("a cat")
    if image.size != (pipe.defaults.width, pipe.defaults.height):
        raise Fault(f"an image of {image.size}")


def tokenize(folder: Path) -> None:
    """Read a tokenizer and put prompts into it: the ids must be of the asked-for length, and in the vocabulary."""
    tokenizer = Tokenizer.from_folder(folder, 10_000)
    ids = tokenizer(PROMPTS, 24)
    if ids.shape != (len(PROMPTS), 24) or not (ids >= 0).all() or not (ids < 10_000).all():
        raise Fault(f"ids {ids.shape} from {ids.min()} to {ids.max()}")


def generate_from(place: Place) -> None:
    """Draw a picture again from its settings, and look at what is printed."""
    out = place.folder / "again.png"
    ended = run("generate", "--from", place.picture, "--out", out, "--anyway")
    out.unlink(missing_ok=True)
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    check_lines(ended.output.replace("\r", "\n"))


def check_lines(text: str) -> None:
    for line in text.splitlines():
        check_line(line)


# -- cases -----------------------------------------------------------------------------------------------------


def settings_cases(place: Place) -> st.SearchStrategy[Case]:
    """Every JSON file of a model, what a LoRA's header and a picture say of themselves."""
    files = sorted(place.model.rglob("*.json"))
    vocabularies = [path for path in files if path.name in ("tokenizer.json", "vocab.json")]
    small = st.sampled_from([path for path in files if path not in vocabularies])
    in_json = (small | small | small | st.sampled_from(vocabularies)).flatmap(
        lambda path: damaged_json(path.read_text()).map(lambda text: Case(path, text, lambda: use(place.model)))
    )
    return in_json | lora_settings(place) | picture_settings(place)


def lora_settings(place: Place) -> st.SearchStrategy[Case]:
    """A LoRA whose header has other settings of PEFT."""
    content = place.lora.read_bytes()
    header = json.loads(header_of(content))
    settings = damaged_json(header["__metadata__"]["lora_adapter_metadata"])

    def case(text: bytes) -> Case:
        words = text.decode("utf-8", "surrogatepass")
        changed = header | {"__metadata__": {"lora_adapter_metadata": words}}
        return Case(place.lora, with_header(content, json.dumps(changed).encode()), lambda: use_lora(place))

    return settings.map(case)


def use_lora(place: Place) -> None:
    use(place.model, (str(place.lora),))


def picture_settings(place: Place) -> st.SearchStrategy[Case]:
    """A picture that says another thing of how it was made."""
    with Image.open(place.picture) as image:
        text, pixels = image.info["minflux"], image.copy()

    def case(words: bytes) -> Case:
        info = PngImagePlugin.PngInfo()
        info.add_itxt("minflux", words.decode("utf-8", "replace"))
        other = place.folder / "other.png"
        pixels.save(other, pnginfo=info)
        return Case(place.picture, other.read_bytes(), lambda: generate_from(place))

    return damaged_json(text).map(case)


def tokenizer_cases(place: Place) -> st.SearchStrategy[Case]:
    """A tokenizer's files, in JSON and in bytes: T5's and CLIP's tokenizer.json, CLIP's vocabulary and merges."""
    folders = place.model / "tokenizer", place.model / "tokenizer_2", place.bare
    files = sorted(path for folder in folders for path in folder.glob("*.*"))

    def in_json(path: Path) -> st.SearchStrategy[Case]:
        return damaged_json(path.read_text()).map(lambda text: Case(path, text, lambda: tokenize(path.parent)))

    in_bytes = st.sampled_from(files).flatmap(lambda path: in_any_byte(path, lambda: tokenize(path.parent), 10**6))
    return st.sampled_from([path for path in files if path.suffix == ".json"]).flatmap(in_json) | in_bytes


def header_cases(place: Place) -> st.SearchStrategy[Case]:
    """Every file's header: of weights, in JSON and in bytes, of GGUF, of a picture."""
    weights = st.sampled_from(sorted(place.model.rglob("*.safetensors")))
    in_json = weights.flatmap(
        lambda path: damaged_json(header_of(path.read_bytes())).map(
            lambda text: Case(path, with_header(path.read_bytes(), text), lambda: use(place.model))
        )
    )
    in_bytes = weights.flatmap(lambda path: in_any_byte(path, lambda: use(place.model)))
    content = place.lora.read_bytes()
    lora = damaged_json(header_of(content)).map(
        lambda text: Case(place.lora, with_header(content, text), lambda: use_lora(place))
    )
    packed = in_any_byte(place.packed / "flux.gguf", lambda: use(place.packed))
    return in_json | in_bytes | lora | packed | packed | in_any_byte(place.picture, lambda: generate_from(place))


def in_any_byte(path: Path, act: Callable[[], object], header: int = HEADER) -> st.SearchStrategy[Case]:
    return damaged_bytes(path.read_bytes(), header).map(lambda content: Case(path, content, act))
