"""Names that other packages expect of a neighborhood attention for MLX."""

from natten_mlx.extras import allin1

__all__ = ["allin1"]
