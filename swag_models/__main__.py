"""Run the command `swag-models` as `python -m swag_models`."""

import sys

from swag_models.cli import main

sys.exit(main())
