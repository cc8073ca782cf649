"""`python -m thinkgate`: the same as the `thinkgate` command."""

import sys

from thinkgate.cli import main

sys.exit(main())
