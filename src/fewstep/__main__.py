"""`python -m fewstep` is the `fewstep` command; so is `torchrun -m fewstep`."""

import sys

from fewstep.pipeline.cli.main import main

sys.exit(main())
