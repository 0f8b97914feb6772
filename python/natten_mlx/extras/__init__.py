"""Names that other packages expect of a neighborhood attention for MLX."""
