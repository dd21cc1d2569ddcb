"""`python -m fewstep.pipeline` is the `fewstep` command."""

import sys

from fewstep.pipeline.cli.main import main

sys.exit(main())
