"""Checkpoints as Task Arithmetic's authors pickled them, with classes of their time.

The network is written out here with the class and module names of open_clip 2.0 and of the
authors' scripts; its own forward is what loaded models are compared with.
"""

import pickle
import sys
import warnings
from collections import OrderedDict
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import nn
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)  # not OpenAI's, to be told apart
WIDTH, HEADS, LAYERS, PATCH, IMAGE, EMBEDDING = 16, 2, 2, 4, 16, 8
FORMATS = ("pickle", "protocol 2", "archive", "legacy")


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class LayerNorm(nn.LayerNorm):
    pass


class ResidualAttentionBlock(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.ln_1 = LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS)
        self.ln_attn = nn.Identity()
        self.ln_2 = LayerNorm(WIDTH)
        layers = [
            ("c_fc", nn.Linear(WIDTH, 3 * WIDTH)),
            ("ln", nn.Identity()),
            ("gelu", activation()),
            ("c_proj", nn.Linear(3 * WIDTH, WIDTH)),
        ]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x):  # (positions, samples, width)
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, activation):
        super().__init__()
        blocks = [ResidualAttentionBlock(activation) for _ in range(LAYERS)]
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.resblocks:
            x = block(x)
        return x


class VisualTransformer(nn.Module):
    def __init__(self, activation):
        super().__init__()
        positions = (IMAGE // PATCH) ** 2 + 1
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(positions, WIDTH))
        self.ln_pre = LayerNorm(WIDTH)
        self.transformer = Transformer(activation)
        self.ln_post = LayerNorm(WIDTH)
        self.proj = nn.Parameter(torch.randn(WIDTH, EMBEDDING))

    def forward(self, images):
        x = self.conv1(images).flatten(2).permute(0, 2, 1)
        first = self.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x).permute(1, 0, 2)).permute(1, 0, 2)
        return self.ln_post(x[:, 0]) @ self.proj


class CLIP(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.context_length = 5
        self.visual = VisualTransformer(activation)
        self.token_embedding = nn.Embedding(11, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(5, WIDTH))
        self.ln_final = LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, EMBEDDING))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("attn_mask", torch.zeros(5, 5), persistent=False)

    def encode_image(self, images):
        return self.visual(images)


def _convert_to_rgb(image):
    return image.convert("RGB")


class ImageEncoder(nn.Module):
    def __init__(self, activation=QuickGELU):
        super().__init__()
        self.model = CLIP(activation)
        steps = [
            Resize(IMAGE, interpolation=InterpolationMode.BICUBIC),
            CenterCrop(IMAGE),
            _convert_to_rgb,
            ToTensor(),
            Normalize(MEAN, STD),
        ]
        self.train_preprocess = self.val_preprocess = Compose(steps)
        self.cache_dir = None

    def forward(self, images):
        return self.model.encode_image(images)


class ClassificationHead(nn.Linear):
    def __init__(self, normalize, weights, biases=None):
        super().__init__(weights.shape[1], len(weights))
        self.normalize = normalize
        self.weight = nn.Parameter(weights.clone())
        biases = torch.zeros(len(weights)) if biases is None else biases
        self.bias = nn.Parameter(biases.clone())

    def forward(self, inputs):
        if self.normalize:
            inputs = inputs / inputs.norm(dim=-1, keepdim=True)
        return super().forward(inputs)


class ImageClassifier(nn.Module):
    def __init__(self, image_encoder, classification_head):
        super().__init__()
        self.image_encoder = image_encoder
        self.classification_head = classification_head


_HOMES = {
    "open_clip.model": [
        QuickGELU,
        LayerNorm,
        ResidualAttentionBlock,
        Transformer,
        VisualTransformer,
        CLIP,
    ],
    "open_clip.transform": [_convert_to_rgb],
    "src.modeling": [ImageEncoder, ClassificationHead, ImageClassifier],
}


@contextmanager
def _authors_environment():
    """The classes above as parts of open_clip and src, while this lasts."""
    names = ["src", *_HOMES]
    before = {name: sys.modules.get(name) for name in names}
    sys.modules["src"] = ModuleType("src")
    for home, parts in _HOMES.items():
        sys.modules[home] = ModuleType(home)
        for part in parts:
            part.__module__ = home
            setattr(sys.modules[home], part.__name__, part)
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def save_old(content, path, form="pickle"):
    """Write as the authors did (the first two forms), or with torch.save's formats."""
    with _authors_environment(), warnings.catch_warnings():
        if form in FORMATS[:2]:
            protocol = None if form == "pickle" else 2
            path.write_bytes(pickle.dumps(content, protocol))
        else:
            warnings.simplefilter("ignore")  # of sources that the old format looks for
            torch.save(content, path, _use_new_zipfile_serialization=form == "archive")
    return path


class Harm:
    """Unpickling it the usual way makes a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def tensors_as(model_prefix, encoder):
    """The encoder's state dict with another prefix than ``model.``."""
    return {
        model_prefix + name.removeprefix("model."): value
        for name, value in encoder.state_dict().items()
    }
