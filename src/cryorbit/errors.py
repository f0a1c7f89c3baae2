"""What goes wrong because of what was given: one base class, so that the shell can print one line and exit 2."""


class CryorbitError(Exception):
    """Base of every error a user can mend. The message says what was given, what was wanted, what to do."""


class BadInput(CryorbitError, ValueError):
    """A value, shape or combination of options that cannot be used."""


class BadFile(CryorbitError):
    """A file that is missing, broken or of the wrong kind. The message names the file, the row and the remedy."""
