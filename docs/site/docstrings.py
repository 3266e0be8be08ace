"""Makes the docstrings, which are written to be read in an editor, ready for Markdown."""

import sys
from pathlib import Path

from griffe import Docstring, Extension, Object

sys.path.append(str(Path(__file__).parent))
from pages import docstring


class Docstrings(Extension):
    """Rewrites each docstring as griffe finds it."""

    def on_object(self, *, obj: Object, **kwargs) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if isinstance(obj.docstring, Docstring):
            obj.docstring.value = docstring(obj.docstring.value)
