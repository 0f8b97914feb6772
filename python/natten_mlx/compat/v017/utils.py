"""natten.utils of NATTEN 0.17: what its documentation names."""

from natten_mlx.compat._machine import get_device_cc

__all__ = ["get_device_cc"]
