"""Models by name: from a cache laid out by hand, and from two hubs on this machine: one serves, the other refuses."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

import minflux
from minflux.backend import get_backend
from minflux.checkpoints import hub
from minflux.checkpoints.folder import save_component
from minflux.checkpoints.open import open_model
from minflux.checkpoints.read import load_component
from minflux.errors import ArgumentError, CheckpointError
from tests import loopback_hub
from tests.loopback_hub import COMMIT, NAME

HERE = Path(minflux.__file__).parent.parent
WEIGHTS = "text_encoder_2/model.safetensors"


def run(folder: Path, *args: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `python -m minflux ARGS` in `folder`, with a cache of its own and nobody's token."""
    own = {"HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "", "PYTHONPATH": str(HERE)}
    own |= {"MINFLUX_CHECK_SHAPES": ""}  # a third of a process's time, and checked in all other tests
    return subprocess.run(
        [sys.executable, "-m", "minflux", *args],
        cwd=folder, env=os.environ | own | environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def generate(model: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Draw one step of a cat."""
    return run(folder, "generate", "a cat", "--model", model, "--steps", "1", **environment)


def test_a_model_in_the_cache_needs_no_network(model, tmp_path):
    home = tmp_path / "hf" / "hub" / "models--someone--small"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    shutil.copytree(model, home / "snapshots" / COMMIT)
    done = generate("someone/small", tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "minflux.png").exists()


# -- a hub that serves ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(model, tmp_path_factory) -> Path:
    """A model whose T5 has a long table, larger than what is fetched at a time, and files that no folder needs."""
    folder = shutil.copytree(model, tmp_path_factory.mktemp("hub") / "small")
    cfg, p = load_component(folder, "text_encoder_2", get_backend("numpy"))
    table = np.zeros((140_000, cfg.d_model), np.float32)
    table[: cfg.vocab_size] = p["shared"]["weight"]
    save_component(folder, "text_encoder_2", replace(cfg, vocab_size=len(table)), {**p, "shared": {"weight": table}})
    (folder / "flux1.safetensors").write_bytes(bytes(100_000))
    (folder / "README.md").write_text("a small model")
    return folder


@pytest.fixture
def serving_hub(repository):
    with loopback_hub.serving(repository) as hub:
        yield hub


def assert_drawn(done: subprocess.CompletedProcess, folder: Path, repository: Path) -> None:
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "minflux.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(minflux.load(repository)("a cat", seed=0, steps=1)))


def test_a_model_is_fetched_once_and_drawn_with(tmp_path, serving_hub, repository):
    """All that its folder needs is fetched, nothing else is even asked for, and the token is shown each time."""
    done = generate(NAME, tmp_path, HF_ENDPOINT=serving_hub.url, HF_TOKEN="hf_secret")
    assert_drawn(done, tmp_path, repository)
    needed = set(serving_hub.files()) - {"flux1.safetensors", "README.md"}
    assert serving_hub.fetched() == sorted(needed)
    assert {asked.file for asked in serving_hub.asked} == needed | {None}
    assert {asked.authorization for asked in serving_hub.asked} == {"Bearer hf_secret"}
    assert "hf_secret" not in done.stderr + done.stdout

    serving_hub.asked.clear()
    (tmp_path / "minflux.png").unlink()
    assert_drawn(generate(NAME, tmp_path, HF_ENDPOINT=serving_hub.url), tmp_path, repository)
    assert {(asked.file, asked.authorization) for asked in serving_hub.asked} == {(None, None)}  # is it the newest?


def test_what_a_model_cannot_honour_is_refused_before_a_weight_is_fetched(tmp_path, serving_hub):
    negative = ["--negative-prompt", "rain", "--guidance", "1"]
    done = run(tmp_path, "generate", "a cat", "--model", NAME, *negative, HF_ENDPOINT=serving_hub.url)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("minflux: negative_prompt has no effect")
    assert set(serving_hub.fetched()) <= set(hub.SETTINGS)
    assert "transformer/config.json" in serving_hub.fetched()


def test_a_file_that_is_cut_off_goes_on_where_it_stopped(tmp_path, serving_hub, repository):
    size = (repository / WEIGHTS).stat().st_size
    serving_hub.cuts[WEIGHTS] = [size - 1000]
    assert_drawn(generate(NAME, tmp_path, HF_ENDPOINT=serving_hub.url), tmp_path, repository)
    first, second = (asked.range for asked in serving_hub.asked if (asked.method, asked.file) == ("GET", WEIGHTS))
    assert first is None
    assert 0 < int(re.fullmatch(r"bytes=(\d+)-", second)[1]) < size


def test_a_file_whose_line_stays_broken_begins_again_in_the_next_run(tmp_path, serving_hub, repository):
    """huggingface_hub goes on inside of one call; what another call had of an unfinished file, it throws away."""
    serving_hub.cuts[WEIGHTS] = [(repository / WEIGHTS).stat().st_size - 1000] + 6 * [0]
    done = generate(NAME, tmp_path, HF_ENDPOINT=serving_hub.url)
    assert (done.returncode, list(tmp_path.glob("*.png"))) == (2, []), done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"minflux: {NAME}: fetching it from the Hugging Face Hub failed: ")
    assert "Traceback" not in done.stderr
    whole = set(serving_hub.fetched()) - {WEIGHTS}
    assert len(whole) > 5

    serving_hub.cuts.clear()
    serving_hub.asked.clear()
    assert_drawn(generate(NAME, tmp_path, HF_ENDPOINT=serving_hub.url), tmp_path, repository)
    assert [asked.range for asked in serving_hub.asked if (asked.method, asked.file) == ("GET", WEIGHTS)] == [None]
    assert not whole & set(serving_hub.fetched())


@pytest.mark.parametrize("error", [RuntimeError("CAS service error"), ValueError("too large"), OSError("disk full")])
def test_whatever_the_library_raises_is_one_line(monkeypatch, error):
    """Its transfer code in Rust raises RuntimeError, its HTTP library errors of its own."""

    def fail(*args, **settings):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=rf"^a/b: fetching it from the Hugging Face Hub failed: {error}$"):
        hub.fetch("a/b")


@pytest.mark.parametrize("find", [hub.cached, hub.fetch])
def test_a_name_that_the_hub_does_not_allow(find):
    with pytest.raises(CheckpointError, match=r"^a--b/c: "):
        find("a--b/c")


def test_inspect_and_convert_take_what_is_in_the_cache(tmp_path, serving_hub, repository):
    """They fetch nothing."""
    local = {"HF_ENDPOINT": serving_hub.url}
    done = run(tmp_path, "inspect", NAME, **local)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr == (
        f"minflux: {NAME}: no such folder here, nor in the cache of huggingface_hub; `minflux generate --model {NAME}` "
        "fetches it\n"
    )
    assert serving_hub.asked == []
    assert generate(NAME, tmp_path, **local).returncode == 0
    serving_hub.asked.clear()
    done = run(tmp_path, "inspect", NAME, **local)
    assert done.returncode == 0, done.stderr
    assert "T5: " in done.stdout
    assert run(tmp_path, "convert", NAME, "copy", "--format", "diffusers", **local).returncode == 0
    assert serving_hub.asked == []
    (tmp_path / "minflux.png").unlink()
    assert_drawn(generate("copy", tmp_path), tmp_path, repository)


# -- a hub that refuses --------------------------------------------------------------------------------------


class Refusal(BaseHTTPRequestHandler):
    """A hub that answers every question with one error."""

    status, code = 404, "RepoNotFound"

    def refuse(self):
        self.send_response(self.status)
        self.send_header("X-Error-Code", self.code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = refuse

    def log_message(self, *args):
        pass


@pytest.fixture
def refusing_hub(request):
    status, code = request.param
    server = HTTPServer(("127.0.0.1", 0), type("Hub", (Refusal,), {"status": status, "code": code}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("refusing_hub", "words"),
    [
        ((403, "GatedRepo"), "someone/small: is gated: accept its licence"),
        ((404, "RepoNotFound"), "someone/small: no such folder here, and no such repository"),
    ],
    indirect=["refusing_hub"],
)
def test_a_hub_that_refuses(tmp_path, refusing_hub, words):
    done = generate("someone/small", tmp_path, HF_ENDPOINT=refusing_hub)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"minflux: {words}")
    assert not list(tmp_path.glob("*.png"))


def test_no_network_and_nothing_in_the_cache(tmp_path):
    done = generate("schnell", tmp_path, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("minflux: black-forest-labs/FLUX.1-schnell: is not in the cache")


# -- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dev", "black-forest-labs/FLUX.1-dev"),
        ("a/b", "a/b"),
        ("./a/b", None),
        ("a/b/c", None),
        ("/a", None),
        ("nonsense", None),
        ("../a", None),
        ("models/missing.safetensors", None),
    ],
)
def test_what_is_a_name_on_the_hub(name, expected):
    assert hub.repository(name) == expected


def test_a_name_that_is_none_is_told():
    words = "model 'nonsense' is neither a folder nor a file nor one that ships here (tiny), nor a name on"
    with pytest.raises(ArgumentError, match=re.escape(words)):
        open_model("nonsense", fetch=True)


def test_only_what_is_needed_is_fetched():
    wanted = ["transformer/diffusion_pytorch_model-00001-of-00003.safetensors", "tokenizer_2/spiece.model"]
    wanted += ["text_encoder_3/model.safetensors", "tokenizer_3/spiece.model"]  # SD3's
    unwanted = ["flux1-dev.safetensors", "ae.safetensors", "text_encoder/pytorch_model.bin", "README.md"]
    fetched = [n for n in wanted + unwanted if any(fnmatch.fnmatch(n, pattern) for pattern in hub.FILES)]
    assert fetched == wanted
