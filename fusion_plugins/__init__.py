"""AWD, AdaMerging and Model Tinting as algorithms of FusionBench.

Importing this package costs nothing: the public names load on first use, because Hydra
and packaging tools import it in programs that never merge a model.
"""

from .common import lazy_exports
from .common.compat import keep_clip_name

keep_clip_name()  # before FusionBench's modules are imported by their own names

__version__ = "0.1.0"

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "AdaMergingAlgorithm": ".adamerging.algorithm",
        "AWDAlgorithm": ".awd.algorithm",
        "CLIPTaskPool": ".taskpool",
        "ConvNextPool": ".modelpool.image_pools",
        "Dinov2Pool": ".modelpool.image_pools",
        "FolderModelPool": ".modelpool.folders",
        "ClassificationHead": ".merged.heads",
        "GPT2TaskPool": ".taskpool.gpt2",
        "NYUv2TaskPool": ".taskpool.nyuv2",
        "OpenCLIPModelPool": ".modelpool.openclip",
        "OpenCLIPTaskPool": ".taskpool.openclip",
        "PoolAdapter": ".pools.adapter",
        "ResNetPool": ".modelpool.image_pools",
        "SelectAlgorithm": ".select.algorithm",
        "Seq2SeqTaskPool": ".taskpool.seq2seq",
        "SequenceClassificationTaskPool": ".taskpool.sequence_classification",
        "StreamingAWDAlgorithm": ".streaming",
        "TaskVectors": ".task_vectors",
        "TintedModel": ".merged.model",
        "TintingAlgorithm": ".tinting.algorithm",
        "load_differences": ".compare.loading",
        "load_results": ".compare.loading",
        "recalibrate": ".pools.recalibration",
        "register_adapter": ".pools.adapter",
    },
)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
