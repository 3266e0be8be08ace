"""Models that ship inside the package, each a folder in the layout of diffusers.

`tiny` is a FLUX.1 of small width, trained by this project on its emoji scenes (`minflux.train`), with its own
two tokenizers.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
