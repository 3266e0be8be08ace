"""Put generated text into a page, between two marks: `<!-- NAME: begin -->` and `<!-- NAME: end -->`.

minflux evaluate --prompts 500 | python -m tools.insert evaluate README.md docs/tiny-model-card.md
"""

import sys
from pathlib import Path


def insert(page: str, name: str, text: str) -> str:
    """Return the page with `text` between the marks of `name`; raises `ValueError` when it has no such marks.

    >>> print(insert("a <!-- x: begin -->old<!-- x: end --> b", "x", "new"))
    a <!-- x: begin -->
    <BLANKLINE>
    new
    <BLANKLINE>
    <!-- x: end --> b
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"expected the marks {begin} and {end}")
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"


def main(name: str, *paths: str) -> None:
    """Insert what comes on standard input into each page; none is written unless all have the marks."""
    text = sys.stdin.read()
    if not text.strip():
        sys.exit("nothing came on standard input: no page changed")
    try:
        pages = {path: insert(Path(path).read_text(), name, text) for path in paths}
    except ValueError as error:
        sys.exit(f"{error} in every one of {', '.join(paths)}")
    for path, page in pages.items():
        Path(path).write_text(page)


if __name__ == "__main__":
    main(*sys.argv[1:])
