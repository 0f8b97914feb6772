"""natten.experimental of NATTEN 0.17.4 and 0.17.5: the fused form, which works under `mx.compile` under either name."""

from natten_mlx.compat.v017.functional import na1d, na2d, na3d

__all__ = ["na1d", "na2d", "na3d"]
