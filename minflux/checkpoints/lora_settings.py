"""How strong a LoRA is made: its α, in the file's header as diffusers writes it, or in PEFT's adapter_config.json.

An α that lies beside a pair in the file goes before both.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minflux.checkpoints.formats.json_files import parse_json, read_json
from minflux.checkpoints.formats.safetensors import read_metadata
from minflux.checkpoints.lora_files import CONFIG
from minflux.errors import CheckpointError, quoted

Json = dict[str, Any]
PATTERNS, NUMBERS = ("alpha_pattern", "rank_pattern"), ("lora_alpha", "alpha", "r")
BEFORE = re.compile(r"^((base_model\.model|transformer|text_encoder|text_encoder_2)\.)+")  # what PEFT's names lack
QUANTIFIERS = 4  # in a pattern: more of them, or groups of them, may take for ever to match


@dataclass(frozen=True)
class Settings:
    """PEFT's settings of a LoRA: for all of it in adapter_config.json, for a component in a header."""

    path: Path
    whole: Json = field(default_factory=dict)
    parts: Json = field(default_factory=dict)  # "transformer.lora_alpha" and others

    def get(self, name: str, key: str) -> Any:
        """Return a setting for the module that a file calls `name`; None where nothing says it."""
        part = name.partition(".")[0]
        return self.parts.get(f"{part}.{key}", self.whole.get(key))

    def number(self, name: str, key: str, pattern: str) -> float | None:
        """Return a module's number: of the first pattern that fits its name, or that of all modules."""
        patterns = self.get(name, pattern) or {}
        return next((value for text, value in patterns.items() if fits(text, name)), self.get(name, key))

    def alpha(self, name: str) -> float | None:
        """Return a module's α, called "alpha" by PEFT's LoKr and LoHa; None where nothing says it."""
        alpha = self.number(name, "lora_alpha", "alpha_pattern")
        return self.number(name, "alpha", "alpha_pattern") if alpha is None else alpha

    def rank(self, name: str) -> float | None:
        """Return the rank that a module is said to have; None where nothing says it."""
        return self.number(name, "r", "rank_pattern")

    def by_root(self, name: str) -> bool:
        """Return whether α is divided by the root of the rank."""
        return bool(self.get(name, "use_rslora"))


def read_settings(path: Path) -> Settings:
    """Read what a LoRA's header says, and the adapter_config.json beside it; of most files, nothing."""
    parts = parse_json(path, str(read_metadata(path).get("lora_adapter_metadata", "{}")).encode())
    beside = path.with_name(CONFIG)
    whole = read_json(beside) if beside.exists() else {}
    check_settings(path, parts)
    check_settings(beside, whole)
    return Settings(path, whole, parts)


def check_settings(path: Path, settings: Json) -> None:
    """Raise `CheckpointError` for a setting that we read whose value is of another type; others may be anything."""
    for key, value in settings.items():
        if not is_setting(key.rpartition(".")[2], value):
            raise CheckpointError(f"{path}: {key}: expected numbers, found {quoted(value)}")
        for pattern in value if key.endswith(PATTERNS) and value else ():
            check_pattern(path, pattern)


def is_setting(key: str, value: Any) -> bool:
    """Return whether a setting that we read has a value of its type."""
    if key in PATTERNS:
        return value is None or (isinstance(value, dict) and all(map(is_number, value.values())))
    return key not in NUMBERS or value is None or is_number(value)


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number that a float32 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38


def check_pattern(path: Path, pattern: str) -> None:
    """Raise `CheckpointError` for a pattern that is no regular expression, or that could take for ever to match."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: {pattern!a}: expected a regular expression ({error})") from None
    if "(" in pattern or sum(pattern.count(sign) for sign in "*+?{") > QUANTIFIERS:
        raise CheckpointError(f"{path}: {pattern!a}: expected a plain name, or a simple pattern of names")


def fits(pattern: str, name: str) -> bool:
    """Return whether a pattern is a module's whole name or its end, from a dot on, as in PEFT's `get_pattern_key`.

    >>> fits("attn.to_q", "transformer.blocks.0.attn.to_q"), fits("to_q", "blocks.0.add_to_q")
    (True, False)
    """
    return bool(re.fullmatch(rf"(.*\.)?({pattern})", BEFORE.sub("", name)))
