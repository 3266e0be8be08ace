"""Note which files `minflux.load("tiny")` goes through, as a list in JSON: run by path, in a process of its own.

    python -P house_loading.py CHECKOUT

A crossing is a call from a function into another file. It counts the first time that this function calls into that
file. Each crossing adds the file that is left and the file that is entered; the same file twice in a row is one stay.
A stay in a file that was left before is a return.
"""

import json
import sys
import warnings
from pathlib import Path
from types import FrameType

import minflux


def crossings(root: str) -> list[str]:
    """Load the small model, and return the files left and entered, relative to `root`."""
    seen: set[tuple] = set()
    path: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        called = frame.f_code.co_filename
        if event != "call" or not called.startswith(root):
            return
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(root):
            caller = caller.f_back  # the caller's caller, where a library's function is between
        if caller is None or caller.f_code.co_filename == called or (caller.f_code, called) in seen:
            return
        seen.add((caller.f_code, called))
        path.extend([caller.f_code.co_filename, called])

    load = minflux.load
    load("tiny", "numpy", memory="resident")  # once before: importing is no part of the path
    sys.setprofile(note)
    load("tiny", "numpy", memory="resident")
    sys.setprofile(None)
    return [file.removeprefix(root) for file in path]


def main(checkout: str) -> None:
    """Print the stays."""
    package = Path(minflux.__file__).parent
    if not package.is_relative_to(checkout):
        raise SystemExit(f"expected the minflux of {checkout}, found {package}")
    warnings.simplefilter("ignore")
    path = crossings(f"{package}/")
    print(json.dumps([file for i, file in enumerate(path) if i == 0 or path[i - 1] != file]))


if __name__ == "__main__":
    main(sys.argv[1])
