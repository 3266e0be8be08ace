"""A drawing as one HTML file: the record as text, the page's own files, and the code that its panels are about."""

import html
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minflux.checkpoints.formats.atomic import written_whole
from minflux.explain.data import Packed, pack, pack_shares, pack_signed
from minflux.explain.frames import encode_frames
from minflux.explain.links import address, links
from minflux.explain.modulations import PLACES
from minflux.explain.record import Record, Recorder, block_names, record
from minflux.version import __version__

FOLDER = Path(__file__).parent / "page"
SCRIPTS = (
    "data",
    "colours",
    "state",
    "grid",
    "chart",
    "map",
    "steps",
    "attention",
    "modulation",
    "rope",
    "motion",
    "cost",
    "main",
)
FRAME_HEIGHT = 900  # pixels of a page inside another one


@dataclass(frozen=True, eq=False)
class Explanation:
    """A drawing, opened up: in Jupyter it is shown in its cell, `save` writes it as an HTML file."""

    record: Record
    repository: str | None = field(default_factory=address)

    @cached_property
    def html(self) -> str:
        """Return the page."""
        return page(self.record, self.repository)

    def save(self, path: str | Path) -> None:
        """Write the page as a file, whole or not at all."""
        with written_whole(path) as file:
            file.write(self.html.encode())

    def __repr__(self) -> str:
        """Return one line: the prompt, and how to see more."""
        return f"Explanation({self.record.prompt!r}, {len(self.html.encode()) / 1e6:.1f} MB): save it as an .html file"

    def _repr_html_(self) -> str:
        """Return the page inside a frame, for Jupyter."""
        title = html.escape(f"minflux: {self.record.prompt}")
        style = f"width: 100%; height: {FRAME_HEIGHT}px; border: 0"
        return f'<iframe title="{title}" style="{style}" srcdoc="{html.escape(self.html)}"></iframe>'


def explain(pipe: Any, prompt: str, **settings: Any) -> Explanation:
    """Draw an image of a prompt by a FLUX.1, and explain it; for the settings see `record`."""
    return Explanation(record(pipe, prompt, **settings))


# -- the page --------------------------------------------------------------------------------------------------


def page(drawn: Record, repository: str | None = None) -> str:
    """Return the page of a drawing: one HTML text, which asks no other file for anything."""
    scripts = (read(f"{name}.js") for name in SCRIPTS)
    parts = {
        "title": html.escape(f"{drawn.prompt} – minflux"),
        "style": read("page.css"),
        "data": as_script(content(drawn, repository)),
        "script": "\n".join(scripts),
    }
    text = read("page.html")
    for name, part in parts.items():
        before, after = text.split(f"<!-- {name} -->")
        text = before + part + after
    return text


def read(name: str) -> str:
    """Return one of the page's own files."""
    return (FOLDER / name).read_text("utf-8")


def as_script(data: dict[str, Any]) -> str:
    """Return data as JSON that can stand inside a <script>, whatever a prompt has in it."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def content(drawn: Record, repository: str | None = None) -> dict[str, Any]:
    """Return all that the page shows."""
    choice, groups = drawn.seen.choice, drawn.seen.groups
    return {
        "version": __version__,
        "prompt": drawn.prompt,
        "model": drawn.model,
        "seed": drawn.seed,
        "guidance": drawn.guidance,
        "passes": drawn.passes,
        "size": drawn.size,
        "timesteps": drawn.timesteps,
        "shown": drawn.seen.shown,
        "config": asdict(drawn.config),
        "textLength": drawn.text_length,
        "tokens": drawn.tokens,
        "words": groups.labels,
        "grid": groups.grid,
        "attention": asdict(choice) | attention(drawn.seen),
        "modulation": {kind: modulation(drawn, kind) for kind in ("double", "single")},
        "moved": drawn.moved,
        "cost": [asdict(part) for part in drawn.cost],
        "frames": encode_frames(drawn.frames),
        "links": links(repository),
    }


def attention(seen: Recorder) -> dict[str, Packed]:
    """Pack what was kept of attention, (steps, blocks, heads, M, M)."""
    choice = seen.choice
    kept = [
        [[seen.attention[step, block, head] for head in choice.heads] for block in choice.blocks]
        for step in choice.steps
    ]
    return pack_shares(np.array(kept, np.float32))


def modulation(drawn: Record, kind: str) -> dict[str, Any]:
    """Pack the modulations of the blocks of a kind: their sizes (steps, blocks, places, 3), and channels of them."""
    seen = drawn.seen
    names = [name for name in block_names(drawn.config) if name.startswith(kind)]
    if not names:
        return {"blocks": [], "places": PLACES[kind]}
    kept = [[seen.steered[step, name] for name in names] for step in seen.shown]
    sizes = np.array([[size for size, _ in row] for row in kept], np.float32)
    channels = np.array([[some for _, some in row] for row in kept], np.float32)
    return {"blocks": names, "places": PLACES[kind], "sizes": pack(sizes), "channels": pack_signed(channels)}
