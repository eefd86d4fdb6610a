"""`python -m swag_models` is `swag-models`."""

import sys

from swag_models.cli import main

sys.exit(main())
