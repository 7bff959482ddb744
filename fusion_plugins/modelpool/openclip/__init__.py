"""OpenCLIP pools: FusionBench's, for any Python, without downloads, pickles on request.

`fusion-plugins convert --help` turns pickles into safetensors.
"""

from ...common import lazy_exports, require

require("open_clip", "OpenCLIP")

# Public name -> module that defines it; loaded on first use, because open_clip is slow.
__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "OpenCLIPImageEncoder": ".encoder",
        "OpenCLIPModelPool": ".modelpool",
        "convert_checkpoint": ".checkpoints",
        "load_encoder": ".checkpoints",
        "load_head": ".checkpoints",
    },
)
