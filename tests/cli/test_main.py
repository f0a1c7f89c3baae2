from __future__ import annotations

import pytest

from cryorbit.cli.main import SUBVERBS, VERBS, main


def test_help_names_every_verb(capsys):
    """`cryorbit --help` lists all verbs with a line each."""
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in VERBS)


def test_an_unknown_verb_is_one_line_and_exit_2(capsys):
    """A wrong verb is an error that lists the right ones."""
    assert main(["polish"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: no verb 'polish'")
    assert printed.err.count("\n") == 1


def test_a_missing_file_is_one_line_and_exit_2(capsys, tmp_path):
    """Bad input ends in one line on stderr."""
    assert main(["fsc", str(tmp_path / "a.mrc"), str(tmp_path / "b.mrc")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


WORDS = [(v,) for v in VERBS if v not in SUBVERBS] + [(v, w) for v, more in SUBVERBS.items() for w in more]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_verb_has_help(words, capsys):
    """`cryorbit VERB --help` works for each verb, of one word or two, and exits 0."""
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    assert "usage: cryorbit" in capsys.readouterr().out


@pytest.mark.parametrize("verb", SUBVERBS)
def test_a_verb_of_two_words_tells_the_second(verb, capsys):
    """Alone or with --help it lists what may follow; a wrong second word is one line and exit 2."""
    for words in ([verb], [verb, "--help"]):
        assert main(words) == 0
        printed = capsys.readouterr().out
        assert all(f"{verb} {second}" in printed for second in SUBVERBS[verb])
    assert main([verb, "guess"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: no verb '{verb} guess'")
    assert printed.err.count("\n") == 1
