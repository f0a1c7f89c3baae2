"""The run-time checker behind the import hook in conftest.py: beartype, an int welcome as a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
