"""Conditioning kept on disk, and encoded once: the same bits, the encoders untouched, and never another prompt's."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import minflux
from minflux.backend import available, get_backend
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.checkpoints.lazy import Leaf
from minflux.commands import main as cli
from minflux.inference import flux1
from minflux.inference.cache_files import default_folder, kept_files, remove_oldest, size_limit
from minflux.inference.memory import MODES


@pytest.fixture
def runs(monkeypatch):
    """Count how many prompts go through the text encoders."""
    counted = []
    encoder = flux1.t5_encoder
    monkeypatch.setattr(
        flux1, "t5_encoder", lambda p, cfg, ids, *rest: counted.append(len(ids)) or encoder(p, cfg, ids, *rest)
    )
    return counted


# -- on disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_seen_before_is_not_encoded_again(model, tmp_path, runs, backend, mode, monkeypatch):
    expected = minflux.load(model, backend, memory=mode).encode(["a cat", "an owl"], guidance=1)
    runs.clear()
    minflux.load(model, backend, memory=mode, cache=tmp_path / "c").encode(["a cat", "an owl"], guidance=1)
    assert runs == [2]
    pipe = minflux.load(model, backend, memory=mode, cache=tmp_path / "c")
    monkeypatch.setattr(Leaf, "read", None)  # no weight is read either
    kept = pipe.encode(["a cat", "an owl"], guidance=1)
    assert runs == [2]
    for ours, theirs in ((kept.txt, expected.txt), (kept.y, expected.y)):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(pipe.nx.to_numpy(ours), pipe.nx.to_numpy(theirs))


@pytest.mark.parametrize(("backend", "dtype"), [("numpy", "float16"), ("mlx", "float16"), ("mlx", "bfloat16")])
def test_in_every_dtype(model, tmp_path, runs, backend, dtype):
    if backend not in available():
        pytest.skip(f"no {backend} here")
    first, again = (minflux.load(model, backend, dtype, cache=tmp_path).encode(["a cat"], guidance=1) for _ in range(2))
    assert runs == [1]
    assert first.txt.dtype == again.txt.dtype
    assert first.y.dtype == again.y.dtype
    assert bool((first.txt == again.txt).all())
    assert bool((first.y == again.y).all())


def test_the_picture_is_the_same_to_the_bit(model, tmp_path):
    expected = minflux.load(model)("a cat", seed=3).tobytes()
    for _ in range(2):
        assert minflux.load(model, cache=tmp_path)("a cat", seed=3).tobytes() == expected


def test_without_being_asked_nothing_is_kept(model, tmp_path, monkeypatch):
    monkeypatch.setenv("MINFLUX_CACHE", str(tmp_path / "cache"))
    minflux.load(model)("a cat", steps=1)
    assert not (tmp_path / "cache").exists()


def with_lora(pipe: Path, folder: Path) -> str:
    stem = "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"
    pair = {"lora_A.weight": np.ones((1, 24), np.float32), "lora_B.weight": np.ones((16, 1), np.float32)}
    write_safetensors(folder / "l.safetensors", {f"{stem}.{role}": x for role, x in pair.items()})
    return f"{folder / 'l.safetensors'}:0.3"


PROMPTS = ["a cat", "an owl"]


@pytest.fixture
def seen(model_copy, tmp_path, runs) -> Path:
    """A model whose encoders have seen the prompts, and kept what they said."""
    minflux.load(model_copy, cache=tmp_path / "c").encode(PROMPTS, guidance=1)
    return model_copy


def assert_encoded(pipe, prompts, runs) -> None:
    """Assert that prompts are encoded anew, and kept beside the first ones."""
    pipe.encode(prompts, guidance=1)
    assert len(runs) == 2
    assert len(list(pipe.cache.folder.iterdir())) == 2


@pytest.mark.parametrize("prompts", [["a cat", "an oak"], ["a cat"], PROMPTS[::-1]], ids=["another", "one", "order"])
def test_other_prompts_are_encoded_for_themselves(seen, tmp_path, runs, prompts):
    assert_encoded(minflux.load(seen, cache=tmp_path / "c"), prompts, runs)


def test_another_length_of_text_is_encoded_for_itself(seen, tmp_path, runs):
    pipe = minflux.load(seen, cache=tmp_path / "c")
    assert_encoded(replace(pipe, defaults=replace(pipe.defaults, text_length=20)), PROMPTS, runs)


def test_another_dtype_is_encoded_for_itself(seen, tmp_path, runs):
    assert_encoded(minflux.load(seen, dtype="float16", cache=tmp_path / "c"), PROMPTS, runs)


def test_another_backend_encodes_for_itself(seen, tmp_path, runs):
    pytest.importorskip("mlx.core")
    assert_encoded(minflux.load(seen, "mlx", cache=tmp_path / "c"), PROMPTS, runs)


def test_a_lora_on_the_encoders_encodes_for_itself(seen, tmp_path, runs):
    assert_encoded(minflux.load(seen, lora=with_lora(seen, tmp_path), cache=tmp_path / "c"), PROMPTS, runs)


def double_the_table(model: Path) -> None:
    path = model / "text_encoder_2" / "model.safetensors"
    flat = read_safetensors(path, get_backend("numpy"))
    write_safetensors(path, flat | {"shared.weight": 2 * flat["shared.weight"]})


def touch(model: Path) -> None:
    os.utime(model / "text_encoder_2" / "model.safetensors", ns=(1, 1))


def split_heads_otherwise(model: Path) -> None:
    config = model / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"num_attention_heads": 2', '"num_attention_heads": 1'))


@pytest.mark.parametrize("change", [double_the_table, touch, split_heads_otherwise])
def test_a_changed_encoder_encodes_for_itself(seen, tmp_path, runs, change):
    change(seen)
    assert_encoded(minflux.load(seen, cache=tmp_path / "c"), PROMPTS, runs)


def test_a_model_in_another_place_encodes_for_itself(seen, tmp_path, runs):
    other = shutil.copytree(seen, tmp_path / "other")
    assert_encoded(minflux.load(other, cache=tmp_path / "c"), PROMPTS, runs)


def test_the_transformer_s_lora_leaves_the_text_alone(model, tmp_path, runs):
    pair = {"img_in.lora_A.weight": np.ones((2, 16), np.float32), "img_in.lora_B.weight": np.ones((32, 2), np.float32)}
    write_safetensors(tmp_path / "l.safetensors", pair)
    for lora in ((), str(tmp_path / "l.safetensors")):
        minflux.load(model, lora=lora, cache=tmp_path / "c").encode(["a cat"], guidance=1)
    assert runs == [1]


# -- damage --------------------------------------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def without_y(file: Path) -> None:
    write_safetensors(file, {"txt": np.ones(3, np.float32)})


def whole_numbers(file: Path) -> None:
    write_safetensors(file, {"txt": np.ones(3, np.int32), "y": np.ones(3, np.float64)})


@pytest.mark.parametrize("damage", [cut, flip, empty, without_y, whole_numbers])
def test_a_damaged_file_is_made_afresh_with_a_warning(model, tmp_path, runs, damage):
    pipe = minflux.load(model, cache=tmp_path)
    expected = pipe.encode(["a cat"], guidance=1)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    damage(file)
    with pytest.warns(UserWarning, match=r"damaged \(.*\); the prompt is encoded afresh"):
        np.testing.assert_array_equal(pipe.encode(["a cat"], guidance=1).txt, expected.txt)
    assert runs == [1, 1]
    assert file.read_bytes() == whole


def test_another_prompt_s_file_under_this_name_is_not_taken(model, tmp_path):
    pipe = minflux.load(model, cache=tmp_path)
    pipe.encode(["a cat"], guidance=1)
    (first,) = tmp_path.iterdir()
    expected = pipe.encode(["an owl"], guidance=1)
    (second,) = set(tmp_path.iterdir()) - {first}
    shutil.copy(first, second)
    with pytest.warns(UserWarning, match="other numbers than were written"):
        np.testing.assert_array_equal(pipe.encode(["an owl"], guidance=1).txt, expected.txt)


def test_a_folder_that_can_t_be_written_does_not_stop_the_picture(model, tmp_path):
    (tmp_path / "file").write_text("no folder")
    expected = minflux.load(model)("a cat", steps=1).tobytes()
    with pytest.warns(UserWarning, match="the conditioning is not kept"):
        assert minflux.load(model, cache=tmp_path / "file")("a cat", steps=1).tobytes() == expected


# -- each prompt once ----------------------------------------------------------------------------------------


def test_a_prompt_that_is_there_twice_is_encoded_once(model, runs):
    pipe = minflux.load(model)
    several = pipe.encode(["a cat", "an owl", "a cat", "an owl"], guidance=1)
    assert runs == [2]
    two = pipe.encode(["a cat", "an owl"], guidance=1)
    np.testing.assert_array_equal(several.txt, np.concatenate([two.txt, two.txt]))
    np.testing.assert_array_equal(several.y, np.concatenate([two.y, two.y]))


@pytest.mark.parametrize("backend", available())
def test_a_batch_of_one_prompt_encodes_it_and_its_negative_once(model, runs, backend):
    first, second, third = map(np.asarray, minflux.load(model, backend)(["a cat"] * 3, seed=[4, 5, 4], steps=2))
    assert runs == [2]
    assert np.abs(first.astype(int) - third).max() <= 1  # rows of a batch may round otherwise
    assert np.abs(first.astype(int) - second).max() > 1


def test_conditioning_is_encoded_once_for_several_samples(model, runs):
    pipe = minflux.load(model)
    text = pipe.encode("a cat")
    first, again = (list(pipe.sample(text, seed=3))[-1] for _ in range(2))
    assert runs == [2]
    np.testing.assert_array_equal(first.x, again.x)


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command_encodes_once_for_several_seeds(model, tmp_path, runs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["generate", "a cat", "--model", str(model), "--backend", "numpy", "--steps", "2"]
    result = CliRunner().invoke(cli.main, [*args, "--seed", "3", "--seed", "4"])
    assert result.exit_code == 0, result.output
    assert runs == [2]
    assert CliRunner().invoke(cli.main, [*args, "--seed", "4", "--out", "alone.png"]).exit_code == 0
    assert Path("alone.png").read_bytes() == Path("minflux-4.png").read_bytes() != Path("minflux-3.png").read_bytes()


def test_the_command_keeps_on_request(model, tmp_path, runs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINFLUX_CACHE", str(tmp_path / "cache"))
    args = ["generate", "a cat", "--model", str(model), "--backend", "numpy", "--steps", "1"]
    for out, option in (("a.png", "--cache"), ("b.png", "--cache"), ("c.png", "--memory=auto")):
        result = CliRunner().invoke(cli.main, [*args, "--out", out, option])
        assert result.exit_code == 0, result.output
    assert CliRunner().invoke(cli.main, ["generate", "--from", "a.png", "--out", "d.png", "--cache"]).exit_code == 0
    assert runs == [2, 2]
    assert len({Path(out).read_bytes() for out in ("a.png", "b.png", "c.png", "d.png")}) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_where_it_is_kept(monkeypatch, tmp_path):
    for name in ("MINFLUX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert default_folder() == Path.home() / ".cache" / "minflux"
    monkeypatch.setattr("sys.platform", "darwin")
    assert default_folder() == Path.home() / "Library" / "Caches" / "minflux"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "minflux"
    monkeypatch.setenv("MINFLUX_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"


# -- how much is kept ------------------------------------------------------------------------------------------


def keep(folder: Path, letter: str, size: int, used: float) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{letter * 64}.safetensors"
    path.write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path


def test_what_was_unused_for_the_longest_time_is_removed_first_and_said(tmp_path):
    paths = [keep(tmp_path, letter, 100, used) for letter, used in (("a", 20), ("b", 10), ("c", 30))]
    told = []
    remove_oldest(tmp_path, 300, told.append)
    assert (len(kept_files(tmp_path)), told) == (3, [])
    remove_oldest(tmp_path, 299, told.append)
    assert [path.exists() for path in paths] == [True, False, True]
    assert told == [
        "cache: 1 encoded prompt removed, the longest unused first, to stay within 299 bytes (MINFLUX_CACHE_GB)"
    ]
    with pytest.warns(UserWarning, match="2 encoded prompts removed"):
        remove_oldest(tmp_path, 0)
    assert kept_files(tmp_path) == []


def test_only_the_cache_s_own_files_are_counted_and_removed(tmp_path):
    others = [tmp_path / "model.safetensors", tmp_path / f"{'a' * 63}.safetensors", tmp_path / f"{'a' * 64}.json"]
    for path in others:
        path.write_bytes(bytes(100))
    keep(tmp_path, "a", 100, 10)
    remove_oldest(tmp_path, 0, str)
    assert all(path.exists() for path in others)
    assert not kept_files(tmp_path)


def test_a_prompt_that_is_used_counts_as_new_and_over_the_limit_the_oldest_goes(model, tmp_path, monkeypatch):
    told = []

    def encode(prompt):
        minflux.load(model, "numpy", cache=tmp_path, report=told.append).encode(prompt, guidance=1)

    for number, prompt in enumerate(["a cat", "an owl"]):
        encode(prompt)
        os.utime(kept_files(tmp_path)[-1].path, (number, number))
    cat, owl = kept_files(tmp_path)
    encode("a cat")
    assert [file.path for file in kept_files(tmp_path)] == [owl.path, cat.path]
    monkeypatch.setenv("MINFLUX_CACHE_GB", str(2.5 * cat.size / 1e9))
    encode("a hat")
    assert not owl.path.exists()
    assert cat.path.exists()
    assert len(kept_files(tmp_path)) == 2
    assert len(told) == 1


@pytest.mark.parametrize("given", ["x", "-1", "nan", "inf", "1e400", "\x1b[2J"])
def test_a_limit_that_is_no_number_is_refused_before_weights_are_read(model, tmp_path, monkeypatch, given):
    monkeypatch.setenv("MINFLUX_CACHE_GB", given)
    with pytest.raises(minflux.ArgumentError, match="MINFLUX_CACHE_GB must be a number of gigabytes"):
        minflux.load(model, "numpy", cache=tmp_path)


def test_the_usual_limit_is_two_gigabytes(monkeypatch):
    monkeypatch.delenv("MINFLUX_CACHE_GB", raising=False)
    assert size_limit() == 2 * 10**9
