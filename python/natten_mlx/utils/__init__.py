"""Helpers that need no attention."""

from natten_mlx.utils import window

__all__ = ["window"]
