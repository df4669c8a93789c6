"""`python -m workingpapers` is the same as `workingpapers`."""

import sys

from workingpapers.cli import main

sys.exit(main())
