"""`python -m natten_mlx` is the command `natten-mlx`."""

import sys

from natten_mlx.cli import main

if __name__ == "__main__":
    sys.exit(main())
