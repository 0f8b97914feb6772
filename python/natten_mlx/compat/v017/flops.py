"""natten.flops of NATTEN 0.17: operations of a call. What counts a PyTorch model's is an error here."""

from natten_mlx.compat._flops import fna_flop_count, na_av_flop_count, na_qk_flop_count, of_pytorch

__all__ = ["add_natten_handle", "fna_flop_count", "get_flops", "na_av_flop_count", "na_qk_flop_count"]

add_natten_handle = of_pytorch("add_natten_handle")
get_flops = of_pytorch("get_flops")
