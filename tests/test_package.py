"""What importing and installing the package takes."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_import_leaves_the_extras_alone() -> None:
    code = (
        "import sys, timm; before = set(sys.modules); import mpvg; "
        "heavy = {'lightning', 'jsonargparse', 'matplotlib', 'sklearn', 'transformers', 'rich', 'jinja2', 'scipy', "
        "'onnx', 'onnxruntime', 'onnxscript'}; "
        "print(sorted(heavy & set(sys.modules)), sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split("] ")[0] == "["
    assert "'mpvg'" in printed


@pytest.mark.slow
def test_wheel_works_in_a_clean_environment(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = partial(subprocess.run, cwd=tmp_path, env=clean, check=True)
    run([sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)])
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    run([binaries / "python", "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel)])
    code = (
        "import mpvg, timm; assert 'site-packages' in mpvg.__file__; "
        "assert timm.create_model('mpvg_vit_nano', scheme='mpvg').scheme == mpvg.PositionScheme()"
    )
    run([binaries / "python", "-c", code])
    missing = run([binaries / "mpvg", "compare"], capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert "pip install 'mpvg[compare]'" in missing.stderr
