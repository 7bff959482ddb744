"""FusionBench's OpenCLIP image encoder, built without downloading any weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fusion_bench.models.open_clip import ImageEncoder
from safetensors.torch import save_file
from torch import Tensor, nn

from ...common import get_logger
from ...task_vectors.files import read_tensors
from ...task_vectors.names import bare_name, fitted_names
from .architecture import CONFIG_FILES, Architecture

log = get_logger(__name__)

CONFIG_FILE, OPEN_CLIP_CONFIG_FILE = CONFIG_FILES
WEIGHTS_FILE = "model.safetensors"
CLASSIFIER = "image_encoder."  # of an encoder inside FusionBench's ImageClassifier
_UNUSED = ("transformer.", "attn_mask")  # of the text tower


class OpenCLIPImageEncoder(ImageEncoder):
    """Images -> embeddings, shape (samples, features), not normalised.

    FusionBench's class downloads OpenAI's weights before it loads others, and leaves the
    activation to open_clip, whose newer releases take GELU where OpenAI's weights need
    QuickGELU.

    Args:
        architecture: What to build.
        tensors: All its tensors, names as in FusionBench (``model.visual...``). Those of
            a text transformer are left out; all are kept in float32.

    Raises:
        ValueError: Tensors are missing, left over, or of other shapes.
    """

    base_model_prefix = "model"  # as transformers' classes say it; files leave it out

    def __init__(self, architecture: Architecture, tensors: Mapping[str, Tensor]):
        nn.Module.__init__(self)  # upstream's own __init__ downloads
        self.architecture = architecture
        self.cache_dir = None
        self.model = architecture.build()
        self.train_preprocess, self.val_preprocess = architecture.transforms()
        wanted = self.state_dict()
        names = fitted_names(tensors, wanted, ("model.", CLASSIFIER))
        given = {stored: name for name, stored in names.items()}
        kept = {
            given.get(k, k): v.float() if v.is_floating_point() else v
            for k, v in tensors.items()
            if not _is_unused(k)
        }
        _check_shapes(wanted, kept)
        if any(bare_name(stored) != bare_name(name) for stored, name in given.items()):
            log.info("Names of the encoder's tensors differ by a known prefix.")
        self.load_state_dict(kept, assign=True)
        self.requires_grad_(True)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights and configs.

        :meth:`from_pretrained` and the pools read them, and so does open_clip, from 3.0
        on, as ``local-dir:FOLDER``: its model embeds images. Encoders have no text tower, so
        a layer of zeros stands there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()
        }
        tensors |= self.architecture.idle_text_layer()
        save_file(tensors, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(self.architecture.to_json() + "\n")
        whole = self.architecture.with_text_layer().to_json()
        (folder / OPEN_CLIP_CONFIG_FILE).write_text(whole + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> OpenCLIPImageEncoder:
        """Read a folder that :meth:`save_pretrained` wrote.

        Raises:
            ValueError: The folder lacks a file, or they do not fit each other.
        """
        files = Path(folder, CONFIG_FILE), Path(folder, WEIGHTS_FILE)
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                f"{folder} is not the folder of an OpenCLIP image encoder: it has no"
                f" {' and no '.join(missing)}."
            )
        tensors = read_tensors(files[1], str(folder))
        return cls(Architecture.from_json(files[0].read_text()), tensors)


def _is_unused(name: str) -> bool:
    return bare_name(bare_name(name).removeprefix(CLASSIFIER)).startswith(_UNUSED)


def _check_shapes(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    if missing or extra:
        raise ValueError(
            f"The tensors are not those of this architecture: {len(missing)} are missing"
            f" {missing[:3]}, {len(extra)} have no place {extra[:3]}."
        )
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"The tensor '{name}' has shape {tuple(tensor.shape)}, the architecture"
                f" has {tuple(wanted[name].shape)}. Is model_name right?"
            )
