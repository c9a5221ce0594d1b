"""Run the `miniray` command as `python -m miniray`."""

import sys

from miniray.cli import main

if __name__ == "__main__":
    sys.exit(main())
