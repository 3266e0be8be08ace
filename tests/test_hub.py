"""Models by name: from a cache laid out as huggingface_hub lays it out, and from a hub on this machine that refuses."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from minflux import hub
from minflux.errors import ArgumentError
from minflux.weights.model import find
from tests import tiny_model

COMMIT = "0" * 40


def generate(model: str, folder, **environment: str) -> subprocess.CompletedProcess:
    """Run the command in `folder`, with a cache of its own."""
    args = [sys.executable, "-m", "minflux", "generate", "a cat", "--model", model, "--steps", "1"]
    environment = os.environ | {"HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"} | environment
    return subprocess.run(args, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_model_in_the_cache_needs_no_network(tmp_path):
    home = tmp_path / "hf" / "hub" / "models--someone--small"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    (home / "snapshots").mkdir()
    tiny_model.make(tmp_path / "model")
    shutil.move(tmp_path / "model", home / "snapshots" / COMMIT)
    done = generate("someone/small", tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "minflux.png").exists()


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
        find("nonsense")


def test_only_what_is_needed_is_fetched():
    wanted = ["transformer/diffusion_pytorch_model-00001-of-00003.safetensors", "tokenizer_2/spiece.model"]
    unwanted = ["flux1-dev.safetensors", "ae.safetensors", "text_encoder/pytorch_model.bin", "README.md"]
    fetched = [n for n in wanted + unwanted if any(fnmatch.fnmatch(n, pattern) for pattern in hub.FILES)]
    assert fetched == wanted
