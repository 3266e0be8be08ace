"""The page in a browser: what a person points at, clicks and types does what it says, and the numbers are right."""

import re

import numpy as np
import pytest

from minflux.explain.data import unpack, unpack_shares
from minflux.explain.record import record
from minflux.explain.write import Explanation, attention, modulation
from minflux.model.rope import rope
from tests import tiny_model
from tests.explain.browser import browsing, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

WIDTHS = (400, 800, 1400)


@pytest.fixture(scope="module")
def drawn():
    return record(tiny_model.pipeline(), "a cat left of an apple", seed=1, steps=4, width=96, height=64)


@pytest.fixture(scope="module")
def shares(drawn):
    """Attention as the page has it, (steps, blocks, heads, M, M): 8 groups of text, then 4 × 6 patches."""
    return unpack_shares(attention(drawn.seen))


@pytest.fixture(scope="module")
def session():
    with browsing() as browser:
        yield browser


@pytest.fixture
def browser(session, drawn, tmp_path):
    """A browser that has the page open, from the disk, at 1400 pixels; at the end the page has not complained."""
    path = tmp_path / "page.html"
    Explanation(drawn, "https://example.org/code").save(path)
    session.look(1400, 1000)
    session.open(path)
    yield session
    assert session.complaints() == []


def go_to(browser, place: int) -> None:
    """Move the slider to a place by its keys, as a person would."""
    browser.run("document.getElementById('step').focus()")
    browser.type(*["left"] * 5, *["right"] * place)


def mini(block: int, head: int) -> str:
    """The small map of a block and a head; the mean of both heads is the third."""
    return f"#minis canvas:nth-of-type({3 * block + head + 1})"


def percents(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"([\d.]+)%", text)]


# -- steps ---------------------------------------------------------------------------------------------------------


def test_the_slider_moves_all_pictures(browser, drawn):
    shown = "return ['noisy', 'clean', 'under'].map((id, i) => document.getElementById(id).src === "
    shown += "data.frames[arguments[i]])"
    for place in range(4):
        go_to(browser, place)
        assert browser.run(shown, place, 4 + place, 4 + place) == [True] * 3
        assert f"t = {drawn.timesteps[place]:.2f}" in browser.text("#step-said")
    go_to(browser, 4)
    assert browser.run(shown, 8, 8, 8) == [True] * 3
    assert "done" in browser.text("#step-said")
    assert browser.run("return document.getElementById('step').getAttribute('aria-valuetext')") == "done, t = 0"


def test_a_step_of_the_film_is_a_button(browser):
    browser.click("#film button:nth-child(2)")
    assert "step 2 of 4" in browser.text("#step-said")
    assert browser.run("return document.querySelectorAll('#film [aria-current=true]').length") == 1


def test_it_plays_to_the_end_and_stops(browser):
    go_to(browser, 3)
    browser.click("#play")
    wait = "const done = arguments[0]; const t = setInterval(() => state.place === 4 && !playing && "
    wait += "(clearInterval(t), done(true)), 20)"
    assert browser.ask("POST", "/execute/async", {"script": wait, "args": []})
    assert browser.run("return document.getElementById('play').getAttribute('aria-label')") == "Play"


# -- attention -----------------------------------------------------------------------------------------------------


def test_pointing_at_a_word_shows_what_it_looks_at(browser, shares):
    go_to(browser, 2)
    browser.click(mini(1, 0))
    browser.point("#words button:nth-child(6)")
    said, row = browser.text("#attention-said"), shares[2, 1, 0, 5]
    assert "in block single 0, head 0: “apple” gives" in said
    words, image, padding, best, *_ = percents(said)
    assert words == pytest.approx(100 * row[:7].sum(), abs=0.6)
    assert padding == pytest.approx(100 * row[7], abs=0.6)
    assert image == pytest.approx(100 * row[8:].sum(), abs=0.6)
    assert best == pytest.approx(100 * row.max(), abs=0.6)
    alphas = browser.run(
        "return [...patches.canvas.getContext('2d').getImageData(0, 0, 6, 4).data].filter((_, i) => i % 4 === 3)"
    )
    np.testing.assert_allclose(alphas, 205 * (1 - row[8:] / row[8:].max()), atol=1)
    browser.point("h1")  # away from it: the one that was chosen is shown again
    assert "“cat” gives" in browser.text("#attention-said")


def test_a_patch_shows_which_words_and_patches_it_looks_at(browser, shares):
    go_to(browser, 0)
    browser.click(mini(2, 2))
    browser.point("#patches", x=4.5 / 6, y=1.5 / 4)
    said, row = browser.text("#attention-said"), shares[0, 2, :, 8 + 6 + 4].mean(axis=0)
    assert "mean of 2 heads: the patch in row 2, column 5 gives" in said
    assert percents(said)[0] == pytest.approx(100 * row[:7].sum(), abs=0.6)
    bars = browser.run("return chips.map((chip) => Number(chip.style.getPropertyValue('--share')))")
    np.testing.assert_allclose(bars, row[:8] / row[:8].max(), atol=0.01)


def test_who_looks_at_it_is_a_column(browser, shares):
    go_to(browser, 1)
    browser.click(mini(0, 1))
    browser.click("#words button:nth-child(2)")
    browser.click("input[value=seen]")
    image, words, *_ = percents(browser.text("#attention-said"))
    column = shares[1, 0, 1, :, 1]
    assert image == pytest.approx(100 * column[8:].mean(), abs=0.6)
    assert words == pytest.approx(100 * column[:7].mean(), abs=0.6)


def test_the_keyboard_goes_everywhere(browser):
    browser.run("document.querySelector('#words button').focus()")
    browser.type("right", "right")
    assert "“left”" in browser.text("#patches-name")
    browser.run("document.getElementById('patches').focus()")
    browser.type("down", "right")
    assert "row 2, column 2" in browser.text("#patches-name")
    browser.run("document.getElementById('minis').focus()")
    browser.type("up", "up", "up", "left", "left", "left", "down")
    assert "in block single 0, head 0" in browser.text("#attention-said")


def test_a_finger_chooses_a_patch(browser):
    browser.look(400, 800, touch=True)
    browser.point("#patches", x=0.5 / 6, y=3.5 / 4, press=True, kind="touch")
    assert "row 4, column 1" in browser.text("#patches-name")


# -- the rest ------------------------------------------------------------------------------------------------------


def test_the_sizes_of_modulations_are_those_recorded(browser, drawn):
    go_to(browser, 1)
    browser.run(
        "const place = document.getElementById('place'); place.value = 3; place.dispatchEvent(new Event('change'))"
    )
    browser.point("#steered .patches", x=1.5 / 4, y=0.5 / 3, press=True)
    said = browser.text("#modulation-said")
    expected = unpack(modulation(drawn, "double")["sizes"])[1, 0, 3]
    assert "double 0, text, MLP" in said
    assert [float(x) for x in re.findall(r"(?:shift|scale|gate) ([\d.]+)", said)] == pytest.approx(expected, abs=0.006)
    browser.click("input[name=quantity][value='0']")
    assert "shift" in browser.text("#steered-name")


def test_positions_are_as_alike_as_the_model_turns_them(browser):
    cfg = tiny_model.FLUX
    cos, sin = rope(np.array([[[0, 2, 1], [0, 5, 7]]]), cfg.axes_dim, cfg.theta)
    expected = np.mean(cos[0, 0, 0] * cos[0, 0, 1] + sin[0, 0, 0] * sin[0, 0, 1])
    assert browser.run("return alike(3, 6)") == pytest.approx(expected, abs=1e-6)
    rows = slice(cfg.axes_dim[0] // 2, (cfg.axes_dim[0] + cfg.axes_dim[1]) // 2)
    expected = np.mean(cos[0, 0, 0, rows] * cos[0, 0, 1, rows] + sin[0, 0, 0, rows] * sin[0, 0, 1, rows])
    assert browser.run("return alike(3, 6, 'row')") == pytest.approx(expected, abs=1e-6)
    browser.run("document.getElementById('side').focus()")
    browser.type("left")
    assert "× 15" in browser.text("#side-said")


def test_what_it_cost_adds_up(browser, drawn):
    rows = browser.run("return [...document.querySelectorAll('#parts tr')].map((row) => row.innerText)")
    assert [row.split("\t")[0] for row in rows] == [part.name for part in drawn.cost]
    assert sum(percents(" ".join(row.split("\t")[1] for row in rows))) == pytest.approx(100, abs=2)


def test_a_box_of_the_map_leads_to_its_panel(browser):
    browser.click("#map-wide a[href='#attention'][aria-label^='Single'] .box")
    assert browser.run("return location.hash") == "#attention"
    assert "in block single 0" in browser.text("#attention-said")
    lit = "light('rope'); return [...document.querySelectorAll('#map-wide .lit.on')].map((r) => r.dataset.of)"
    assert browser.run(lit) == ["rope"]


def test_every_panel_has_its_links_and_its_code(browser):
    for panel in browser.run("return Object.keys(data.links)"):
        links = browser.run(f"return [...document.querySelectorAll('#{panel} > footer a')].map((a) => a.href)")
        assert len(links) >= 2
        assert all(link.startswith("https://example.org/code/blob/HEAD/") for link in links)
    browser.click("#rope details summary")
    assert "def rope(" in browser.text("#rope pre")


# -- how it looks --------------------------------------------------------------------------------------------------

NAMELESS = """
    const named = (e) => e.getAttribute('aria-label') || e.innerText?.trim() || e.labels?.length;
    return [...document.querySelectorAll('button, a, input, select, [tabindex="0"], [role=img]')]
        .filter((e) => e.getClientRects().length && !named(e)).map((e) => e.outerHTML.slice(0, 80))"""
CONTRAST = """
    const level = (c) => c / 255 <= .04045 ? c / 3294.6 : ((c / 255 + .055) / 1.055) ** 2.4;
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = numbers(colour).map(level);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const behind = (e) => {
        const colour = getComputedStyle(e).backgroundColor;
        return numbers(colour)[3] === 0 ? behind(e.parentElement) : colour;
    };
    const ratio = (e) => {
        const [more, less] = [light(getComputedStyle(e).color), light(behind(e))].sort((a, b) => b - a);
        return (more + .05) / (less + .05);
    };
    return [...document.querySelectorAll('p, h1, h2, figcaption, button, label, td, th, summary, code, output, span')]
        .filter((e) => e.innerText?.trim() && e.getClientRects().length && ratio(e) < 4.5)
        .map((e) => [ratio(e), e.outerHTML.slice(0, 80)])"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_it_has_names_and_it_can_be_read(browser, width, dark):
    browser.look(width, 900, dark)
    assert browser.run("return document.documentElement.scrollWidth") == width
    assert browser.run(NAMELESS) == []
    assert browser.run(CONTRAST) == []
    maps = browser.run("return ['wide', 'tall'].map((m) => document.getElementById(`map-${m}`).offsetHeight > 0)")
    assert maps == ([False, True] if width == 400 else [True, False])
