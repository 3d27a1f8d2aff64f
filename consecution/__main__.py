"""``python -m consecution`` is the command ``consecution``."""

import sys

from consecution.cli import main

if __name__ == "__main__":
    sys.exit(main())
