from __future__ import annotations

import pytest

from cryorbit.cli.main import VERBS, main


def test_help_names_every_verb(capsys):
    """`cryorbit --help` lists all verbs with a line each."""
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in VERBS)


def test_an_unknown_verb_is_one_line_and_exit_2(capsys):
    """A wrong verb is an error that lists the right ones."""
    assert main(["refine"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: no verb 'refine'")
    assert printed.err.count("\n") == 1


def test_a_missing_file_is_one_line_and_exit_2(capsys, tmp_path):
    """Bad input ends in one line on stderr."""
    assert main(["fsc", str(tmp_path / "a.mrc"), str(tmp_path / "b.mrc")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    """`cryorbit VERB --help` works for each verb and exits 0."""
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert "usage: cryorbit" in capsys.readouterr().out
