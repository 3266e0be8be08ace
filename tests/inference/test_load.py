"""The front door: what `import minflux` shows before anything is loaded."""

import inspect
import re
import subprocess
import sys
import typing

import pytest

import minflux
from minflux.inference.load import load
from minflux.inference.pipeline import CallSettings, Pipeline


def test_load_is_seen():
    assert "load" in dir(minflux)
    assert minflux.load is load
    with pytest.raises(AttributeError, match="module 'minflux' has no attribute 'lode'"):
        minflux.lode  # noqa: B018


def test_importing_minflux_loads_nothing_heavy():
    code = (
        "import sys, minflux; print([m for m in ('numpy', 'mlx', 'PIL') if m in sys.modules], 'load' in dir(minflux))"
    )
    assert subprocess.check_output([sys.executable, "-c", code]) == b"[] True\n"


@pytest.mark.slow
def test_type_checkers_see_load(tmp_path):
    api = pytest.importorskip("mypy.api")
    (tmp_path / "user.py").write_text(
        "import minflux\n"
        "pipe = minflux.load('tiny')\n"
        "reveal_type(pipe)\n"
        "reveal_type(pipe('a cat', seed=7))\n"
        "reveal_type(pipe(['a cat'], steps=3, on_step=lambda step: print(step.denoised)))\n"
        "pipe('a cat', colour='blue')\n"
    )
    report, _, _ = api.run([str(tmp_path / "user.py"), "--follow-imports=silent", "--ignore-missing-imports"])
    revealed = [line.partition("Revealed type is ")[2].strip('"') for line in report.splitlines() if "Revealed" in line]
    revealed = [kind.replace("builtins.", "") for kind in revealed]
    assert revealed == ["minflux.inference.flux1.Flux1", "PIL.Image.Image", "list[PIL.Image.Image]"]
    assert "Unexpected keyword argument" in report
    assert all(":6: error:" in line for line in report.splitlines() if " error: " in line)


def test_a_call_s_settings_are_spelled_out_once_for_readers_and_once_for_checkers():
    shown = list(inspect.signature(Pipeline.__call__).parameters)
    assert shown[2:] == list(typing.get_type_hints(CallSettings))
    described = inspect.getdoc(Pipeline.__call__)
    assert [
        name for name in shown[2:] if not re.search(rf"^[a-z, _]*\b{name}\b[a-z, _]*:", described, re.MULTILINE)
    ] == []


def test_the_help_page_runs(capsys):
    """Its indented examples, as they stand."""
    lines = [line[4:] for line in minflux.__doc__.splitlines() if line.startswith("    ")]
    code = "\n".join(line for line in lines if not line.startswith(("minflux.", "image.save")))
    exec(code, {})
    assert capsys.readouterr().out.splitlines()[-1] == "19 0.0"
