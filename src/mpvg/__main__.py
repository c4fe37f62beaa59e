"""`python -m mpvg` is the command line."""

import sys

from mpvg.cli import main

sys.exit(main())
