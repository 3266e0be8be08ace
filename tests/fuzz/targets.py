"""The kinds of cases, by name."""

from pathlib import Path

from hypothesis import strategies as st

from tests import tiny_model
from tests.fuzz.arguments import calls
from tests.fuzz.files import header_cases, make, settings_cases, tokenizer_cases

NAMES = "settings", "tokenizers", "headers", "arguments"


def targets(folder: Path) -> dict[str, st.SearchStrategy]:
    """Write into an empty folder what cases need; return the cases of each kind."""
    place = make(folder)
    files = settings_cases(place), tokenizer_cases(place), header_cases(place)
    strategies = *files, calls(tiny_model.pipeline(), place.model, place.lora)
    return dict(zip(NAMES, strategies, strict=True))
