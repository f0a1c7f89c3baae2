"""`python -m cryorbit` is `cryorbit`."""

import sys

from cryorbit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
