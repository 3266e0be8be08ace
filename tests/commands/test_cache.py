"""`minflux cache`: what is kept, and clearing it."""

import pytest

from minflux.inference.cache_files import kept_files
from tests.commands.runner import assert_refused, run
from tests.inference.test_cache import keep


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINFLUX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MINFLUX_CACHE_GB", raising=False)
    return tmp_path / "cache"


def test_without_anything_kept(folder):
    assert "0 encoded prompts, 0 bytes of at most 2.0 GB" in run("cache").output
    assert run("cache", "--clear").output == "0 encoded prompts removed, 0 bytes\n"
    assert not folder.exists()


def test_says_what_is_kept_and_clears_it(folder):
    keep(folder, "a", 3_000_000, 1)
    keep(folder, "b", 1_000_000, 2)
    (folder / "mine.safetensors").write_bytes(b"")
    ended = run("cache")
    assert ended.exit_code == 0
    assert str(folder) in ended.output
    assert "2 encoded prompts, 4.0 MB of at most 2.0 GB (MINFLUX_CACHE_GB)" in ended.output
    assert "models" in ended.output
    assert run("cache", "--clear").output == "2 encoded prompts removed, 4.0 MB\n"
    assert kept_files(folder) == []
    assert (folder / "mine.safetensors").exists()


def test_a_folder_s_name_is_shown_without_its_escapes(folder, monkeypatch):
    monkeypatch.setenv("MINFLUX_CACHE", f"{folder}\x1b[2J")
    assert "\x1b" not in run("cache").output


def test_a_limit_that_is_no_number_is_refused(folder, monkeypatch):
    monkeypatch.setenv("MINFLUX_CACHE_GB", "much")
    assert_refused(run("cache"), "MINFLUX_CACHE_GB")
