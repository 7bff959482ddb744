"""``python -m fusion_plugins.cli``, which is ``fusion-plugins``."""

import sys

from .program import main

sys.exit(main())
