"""The reader's companion: python -m exercises, or python PATH/exercises from anywhere else."""

import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  # who runs this may have an older one
    sys.exit(f"this is Python {sys.version.split()[0]}, and the exercises need 3.11 or newer")

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # instead of this folder

from exercises.companion import main

sys.exit(main())
