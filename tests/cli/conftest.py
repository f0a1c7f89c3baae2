from __future__ import annotations

from pathlib import Path

import pytest

from cryorbit.cli.main import main


@pytest.fixture
def shell(capsys):
    """Run a command line in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> Path:
    """A simulated stack of 320 images of 16 px with truth; copy before changing it."""
    folder = tmp_path_factory.mktemp("simulated") / "data"
    options = "--n-particles 320 --box 16 --pixel-size-A 20 --snr 1 --shift-sd-A 5 --seed 4"
    assert main(["simulate", "synthetic", "-o", str(folder), *options.split()]) == 0
    return folder
