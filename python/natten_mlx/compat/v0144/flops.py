"""natten.flops of NATTEN 0.14: what counts a PyTorch model's operations, which is an error here."""

from natten_mlx.compat.v014.flops import add_natten_handle, get_flops

__all__ = ["add_natten_handle", "get_flops"]
