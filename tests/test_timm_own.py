"""timm's own model tests, taken from its sdist and run on our names."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm

import mpvg


@pytest.mark.slow
def test_timms_own_tests_pass(tmp_path: Path) -> None:
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
    fetched = subprocess.run([*download, "-d", str(tmp_path), f"timm=={timm.__version__}"], check=False)
    if fetched.returncode:
        pytest.skip("no package index to fetch timm's sdist from")
    (sdist,) = tmp_path.glob("timm-*.tar.gz")
    with tarfile.open(sdist) as archive:
        source = archive.extractfile(f"timm-{timm.__version__}/tests/test_models.py")
        assert source is not None
        text = source.read().decode()
    for old, new in (
        ("import timm\n", "import timm\nimport mpvg\n"),
        ("NON_STD_FILTERS = [", "NON_STD_FILTERS = ['mpvg', 'mpvg_[!s]*', "),  # all but Swin: their features are tokens
        ("FEAT_INTER_FILTERS = [", "FEAT_INTER_FILTERS = ['mpvg', 'mpvg_*', "),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "test_models.py").write_text(text)
    chosen = "mpvg and not (backward and t2t)"  # these ask for a gradient of what T2T-ViT freezes
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-k", chosen, "test_models.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": "", "PYTHONPATH": str(Path(mpvg.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    print(run.stdout[-3000:])
    assert run.returncode == 0
    assert " passed" in run.stdout
    assert " failed" not in run.stdout
