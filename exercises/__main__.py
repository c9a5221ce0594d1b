"""The reader's companion."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # who runs this may have an older one
    sys.exit(f"this is Python {sys.version.split()[0]}, and the exercises need 3.11 or newer")

from exercises.companion import main

sys.exit(main())
