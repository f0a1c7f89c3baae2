"""One file format or one program's dialect per module: tables <-> nouns."""
