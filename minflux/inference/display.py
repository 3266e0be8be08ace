"""A pipeline as Jupyter shows it: a small table."""

import html
from typing import Any


def pipeline_html(pipe: Any) -> str:
    """Return what a pipeline is, and what it draws unless told otherwise, as a table in HTML."""
    usual = pipe.defaults
    rows = {
        "numbers": f"{pipe.count_numbers():,}",
        "computed by": pipe.nx.name,
        "draws": f"{usual.width} × {usual.height} pixels in {usual.steps} steps, with guidance {usual.guidance:g}",
        "reads": f"{usual.text_length} tokens of a prompt",
        "LoRAs": ", ".join(pipe.lora),
        "begin with": 'pipe("a prompt", seed=7), pipe.explain("a prompt")',
    }
    cells = "".join(
        f'<tr><th scope="row" style="text-align: left">{name}</th>'
        f'<td style="text-align: left">{html.escape(value)}</td></tr>'
        for name, value in rows.items()
        if value
    )
    return f"<table><caption>{type(pipe).__name__}: {html.escape(pipe.name or 'unnamed')}</caption>{cells}</table>"
