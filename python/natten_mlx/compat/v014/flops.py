"""natten.flops of NATTEN 0.14: what counts a PyTorch model's operations, which is an error here."""

from natten_mlx.compat._flops import of_pytorch

__all__ = ["add_natten_handle", "get_flops"]

add_natten_handle = of_pytorch("add_natten_handle")
get_flops = of_pytorch("get_flops")
