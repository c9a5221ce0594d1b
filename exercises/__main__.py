"""The reader's companion."""

import sys

from exercises.companion import main

sys.exit(main())
