"""Models that are built on neighborhood attention, with the weights that their authors published.

Needs the extra `models` (`pip install 'natten-mlx[models]'`) for the hub, for images and for video; folders with
`config.json` and safetensors load without it.
"""

from natten_mlx.models.convert import convert
from natten_mlx.models.dinat import Dinat, DinatBackbone, DinatConfig
from natten_mlx.models.images import Preprocessor
from natten_mlx.models.ltx_config import LtxDecoderConfig
from natten_mlx.models.ltx_decoder import LtxDecoder
from natten_mlx.models.ltx_tiles import Tiling
from natten_mlx.models.registry import load, save

__all__ = [
    "Dinat",
    "DinatBackbone",
    "DinatConfig",
    "LtxDecoder",
    "LtxDecoderConfig",
    "Preprocessor",
    "Tiling",
    "convert",
    "load",
    "save",
]
