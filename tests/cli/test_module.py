"""`python -m cryorbit` is the command `cryorbit`, exit codes included."""

import subprocess
import sys

import pytest

from cryorbit.cli.main import main


def _module(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cryorbit", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["nonsense"]])
def test_the_module_says_and_returns_what_the_command_does(arguments, capsys):
    """The same text, error and exit code."""
    code = main(arguments)
    said = capsys.readouterr()
    run = _module(*arguments)
    assert (run.returncode, run.stdout, run.stderr) == (code, said.out, said.err)
