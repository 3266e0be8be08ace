"""The page as a file: it holds all and loads nothing, it stays small, and its links lead somewhere."""

import ast
import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minflux.explain import links, write
from minflux.explain.choice import choose, evenly, grid_of
from minflux.explain.groups import Groups, image_groups
from minflux.explain.record import Recorder, block_names, record
from minflux.explain.write import Explanation, content, page
from minflux.model.flux import DEV
from tests import tiny_model

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
HOSTILE = 'a <b>"cat"</b> </script><!-- data --><script>alert(1)</script> & \u2028'


@pytest.fixture(scope="module")
def pipe():
    return tiny_model.pipeline()


@pytest.fixture(scope="module")
def drawn(pipe):
    return record(pipe, "a cat left of an apple", steps=2)


def data_of(text: str) -> dict:
    """What the page's script reads."""
    return json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])


def flux1(drawn):
    """A drawing as FLUX.1-dev makes it at 1024², of random numbers."""
    steps, tokens, labels = evenly(28, 32), (64, 64), tuple(f"word {i}" for i in range(66))
    choice = choose(steps, block_names(DEV), DEV.num_heads, len(labels), tokens)
    grid = grid_of(*tokens, choice.cells)
    groups = Groups(labels, np.concatenate([np.arange(66), 66 + image_groups(*tokens, grid)]), grid)
    seen = Recorder(choice, groups, steps)
    for step in steps:
        for name in block_names(DEV):
            places = 4 if name.startswith("double") else 1
            seen.steered[step, name] = RNG.random((places, 3)), RNG.standard_normal((places, 3, 32))
            for head in choice.heads:
                seen.attention[step, name, head] = RNG.random((groups.count, groups.count))
    frames = [RNG.integers(0, 256, (256, 256, 3), np.uint8) for _ in range(57)]
    t = np.linspace(1, 0, 29).tolist()
    moved = {name: [1.0] * 28 for name in drawn.moved}
    return replace(
        drawn, config=DEV, tokens=tokens, size=(1024, 1024), seen=seen, timesteps=t, frames=frames, moved=moved
    )


def test_a_page_of_flux1_s_size_is_under_5_mb(drawn, tmp_path):
    path = tmp_path / "flux1.html"
    Explanation(flux1(drawn)).save(path)
    assert 3e6 < path.stat().st_size < 5e6


def test_the_page_loads_nothing(drawn):
    text = page(drawn)
    assert "default-src 'none'" in text
    own = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    assert set(re.findall(r"https?://[^\s'\"]+", own)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert re.findall(r"(?:src|href)=\"(?!#)[^\"]+", own) == []
    assert "fetch(" not in own
    assert "import(" not in own


def test_a_prompt_can_say_anything(drawn):
    text = page(replace(drawn, prompt=HOSTILE))
    assert data_of(text)["prompt"] == HOSTILE
    assert text.count("<script") == 2
    assert "<title>a &lt;b&gt;" in text


def test_the_page_has_what_was_recorded(drawn):
    data = data_of(page(drawn))
    assert data == json.loads(json.dumps(content(drawn)))
    assert data["attention"]["levels"]["shape"] == [2, 3, 2, 24, 24]  # 8 groups of text and 4 × 4 patches
    assert len(data["frames"]) == 2 * 2 + 1
    assert all(frame.startswith("data:image/png;base64,") for frame in data["frames"])


def test_many_large_frames_become_small_jpegs():
    frames = [RNG.integers(0, 256, (160, 240, 3), np.uint8)] * 20
    found = write.encode_frames(frames, most=150_000)
    assert found[0].startswith("data:image/jpeg;base64,")
    assert sum(map(len, found)) < 150_000 * 4 / 3 + 40 * 20


# -- links ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", links.PANELS)
def test_every_panel_leads_to_its_chapter_and_its_lines(panel):
    found = links.links("https://example.org/minflux")[panel]
    for chapter in found["chapters"]:
        notebook = json.loads((ROOT / chapter["path"]).read_text())
        assert "".join(notebook["cells"][0]["source"]).partition("\n")[0] == f"# {chapter['name']}"
        assert chapter["url"] == f"https://example.org/minflux/blob/HEAD/{chapter['path']}"
    source = found["source"]
    lines = (ROOT / source["path"]).read_text().splitlines(keepends=True)
    assert "".join(lines[source["line"] - 1 :]).startswith(source["text"])
    assert f"def {source['name']}(" in source["text"]
    assert ast.parse(source["text"])
    assert source["url"].endswith(f"{source['path']}#L{source['line']}")
    assert f'<section id="{panel}"' in write.read("page.html")


def test_without_an_address_there_are_no_links():
    found = links.links(None)["rope"]
    assert found["source"]["url"] is None
    assert [chapter["url"] for chapter in found["chapters"]] == [None]


@pytest.mark.parametrize(
    ("urls", "found"),
    [
        (["Homepage, https://example.org/", "Repository, https://example.org/code/"], "https://example.org/code"),
        (["homepage, https://example.org"], "https://example.org"),
        (["Issues, https://example.org/issues"], None),
        (None, None),
    ],
)
def test_the_address_is_the_package_s_own(monkeypatch, urls, found):
    class Metadata:
        get_all = staticmethod(lambda name: urls)

    monkeypatch.setattr(links, "metadata", lambda name: Metadata)
    assert links.address() == found


# -- Jupyter -------------------------------------------------------------------------------------------------------


def test_an_explanation_is_shown_in_a_frame(pipe):
    explained = pipe.explain("a cat", steps=1)
    shown = explained._repr_html_()
    (inside,) = re.findall(r'srcdoc="([^"]*)"', shown)
    assert html.unescape(inside) == explained.html
    assert repr(explained).startswith("Explanation('a cat', ")


def test_a_pipeline_is_shown_as_a_small_table(pipe):
    shown = replace(pipe, name="<tiny>")._repr_html_()
    assert "Flux1: &lt;tiny&gt;" in shown
    assert "64 × 64 pixels in 4 steps, with guidance 2" in shown
    assert len(shown) < 1500
