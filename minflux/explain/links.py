"""The chapter and the lines of code that each panel of the page is about.

The page holds the lines themselves. Where the project has an address, they and the chapters are links to it.
"""

import inspect
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from minflux.explain.cost import operations
from minflux.model.attention import attention_weights
from minflux.model.flux import through_blocks
from minflux.model.modulation import modulate
from minflux.model.rope import rope
from minflux.sampling.solvers import follow

ROOT = Path(__file__).parents[2]
NAMES = ("repository", "source", "source code", "homepage")  # of an address in the package's metadata, best first
CHAPTERS = {
    "00_the_map": "The map: from a prompt to a picture",
    "01_straight_paths": "Straight paths: rectified flow in two dimensions",
    "04_attention": "Attention: a list that looks at itself",
    "05_rope": "Rotary positions in three axes",
    "06_adaln": "AdaLN: one vector steers every layer",
    "07_double_stream": "The double-stream block: two streams, one attention",
    "08_single_stream": "The single-stream block: attention and MLP side by side",
    "09_assembly": "Assembly: the whole transformer from a checkpoint's names",
}
PANELS: dict[str, tuple[tuple[str, ...], Callable]] = {  # panel -> its chapters, and what it shows
    "map": (("00_the_map", "09_assembly"), through_blocks),
    "steps": (("01_straight_paths",), follow),
    "attention": (("04_attention", "07_double_stream"), attention_weights),
    "modulation": (("06_adaln",), modulate),
    "rope": (("05_rope",), rope),
    "motion": (("01_straight_paths",), follow),
    "cost": (("08_single_stream",), operations),
}


def address() -> str | None:
    """Return the address of the project's repository, as the installed package says it; None where it says none."""
    try:
        urls = metadata("minflux").get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    named = (line.partition(",") for line in urls)
    found = {name.strip().lower(): url.strip() for name, _, url in named}
    return next((found[name].rstrip("/") for name in NAMES if name in found), None)


def links(repository: str | None) -> dict[str, dict[str, Any]]:
    """Return each panel's {"chapters": [{"name", "path", "url"}], "source": {the same, "line", "text"}}."""
    return {
        panel: {"chapters": [chapter(name, repository) for name in names], "source": source(shown, repository)}
        for panel, (names, shown) in PANELS.items()
    }


def chapter(name: str, repository: str | None) -> dict[str, Any]:
    """Return a chapter's title, its path in the project, and its address."""
    path = f"chapters/{name}.ipynb"
    return {"name": f"{name[:2]} {CHAPTERS[name]}", "path": path, "url": url(repository, path)}


def source(shown: Callable, repository: str | None) -> dict[str, Any]:
    """Return a function's name, where it stands in the project, its address, and its lines."""
    function = inspect.unwrap(shown)
    lines, first = inspect.getsourcelines(function)
    path = Path(inspect.getfile(function)).relative_to(ROOT).as_posix()
    where = {"name": function.__name__, "path": path, "line": first, "url": url(repository, f"{path}#L{first}")}
    return where | {"text": "".join(lines)}


def url(repository: str | None, path: str) -> str | None:
    """Return the address of a file in the repository."""
    return None if repository is None else f"{repository}/blob/HEAD/{path}"
