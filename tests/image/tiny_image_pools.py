"""Tiny random models of every image family, as FusionBench's own pools over folders."""

from pathlib import Path

import numpy as np
import torch
import torchvision
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_model
from torch import nn
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.models.resnet import BasicBlock, ResNet
from transformers import (
    BitImageProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    Dinov2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from fusion_plugins.modelpool import image_pools
from fusion_plugins.pools.clip_tasks import register_clip_task

TASKS = {"img-a": 3, "img-b": 4, "img-c": 5}  # classes
FAMILIES = ("resnet", "convnext", "dinov2", "torchvision")
SIZE = 32
# An inner layer to tint.
LAYERS = {
    "resnet": "resnet.encoder.stages.1",
    "convnext": "convnext.encoder.stages.1",
    "dinov2": "dinov2.encoder.layer.1",
    "torchvision": "layer4",
}


class TinyResNet(ResNet):
    """torchvision's ResNet with one block per stage, a sixteenth as wide."""

    def __init__(self, num_classes: int = 1000, weights: None = None):
        super().__init__(BasicBlock, [1, 1, 1, 1])
        self.fc = nn.Linear(32, num_classes)

    def _make_layer(self, block, planes: int, blocks: int, *args, **kwargs):
        return super()._make_layer(block, planes // 16, blocks, *args, **kwargs)


# FusionBench looks torchvision's models up by their name.
torchvision.models.tiny_resnet = TinyResNet


def make_model(family: str, classes: int) -> nn.Module:
    labels = {"num_labels": classes}
    if family == "resnet":
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
        config = ResNetConfig(**sizes, layer_type="basic", **labels)
        return ResNetForImageClassification(config)
    if family == "convnext":
        sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
        return ConvNextForImageClassification(ConvNextConfig(**sizes, **labels))
    if family == "dinov2":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"image_size": SIZE, "patch_size": 8}
        return Dinov2ForImageClassification(Dinov2Config(**sizes, **labels))
    return TinyResNet(num_classes=classes)


def spread_statistics(model: nn.Module) -> None:
    """Running statistics as after training, all different."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            module.num_batches_tracked += 5


@torch.no_grad()
def make_models(family: str, seed: int = 0) -> dict[str, nn.Module]:
    """A base of two classes, and experts: the same trunk plus noise, heads of their own."""
    torch.manual_seed(seed)
    base = make_model(family, 2)
    spread_statistics(base)
    models = {"_pretrained_": base}
    for task, classes in TASKS.items():
        expert = make_model(family, classes)
        state = base.state_dict()
        for name, value in expert.state_dict().items():
            if not name.startswith(("classifier", "fc")):
                value.copy_(state[name])
            if value.is_floating_point() and "running" not in name:
                scale = 0.1 * value.abs().mean().clamp_min(1e-2)
                value.add_(scale * torch.randn(value.shape))
        spread_statistics(expert)
        models[task] = expert
    return models


def processor(family: str):
    if family == "dinov2":
        size = {"height": SIZE, "width": SIZE}
        return BitImageProcessor(size={"shortest_edge": SIZE}, crop_size=size)
    return ConvNextImageProcessor(size={"shortest_edge": SIZE})


class Images(Dataset):
    """Grey images of several sizes, brighter for higher labels."""

    def __init__(self, task: str, count: int = 20):
        self.task, self.count = task, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        label = index % TASKS[self.task]
        draw = np.random.default_rng([index, TASKS[self.task]])
        pixels = draw.integers(0, 120, (30 + index, 40)) + 20 * label
        image = Image.fromarray(pixels.astype(np.uint8))
        return {"image": image, "label": label}


def datasets() -> dict:
    """As a config lists them."""
    target = f"{Images.__module__}.{Images.__qualname__}"
    return OmegaConf.create({t: {"_target_": target, "task": t} for t in TASKS})


def make_pool(family: str, folder: Path):
    """FusionBench's pool over models saved under `folder`."""
    for task, classes in TASKS.items():
        register_clip_task(task, [f"class {i}" for i in range(classes)], ["a {}."])
    models, described = make_models(family), {}
    for name, model in models.items():
        target = folder / name
        if family == "torchvision":
            target.mkdir()
            save_model(model, str(target / "model.safetensors"))
            described[name] = {
                "model_name": "tiny_resnet",
                "num_classes": model.fc.out_features,
                "checkpoint": str(target / "model.safetensors"),
            }
        else:
            model.save_pretrained(target)
            processor(family).save_pretrained(target)
            described[name] = str(target)
    if family != "torchvision":
        described["_pretrained_"] = {"config_path": described["_pretrained_"]}
    options = {"test_datasets": datasets()}
    kinds = {"convnext": image_pools.ConvNextPool, "dinov2": image_pools.Dinov2Pool}
    if family not in kinds:
        kind = "torchvision" if family == "torchvision" else "transformers"
        options["type"] = kind
    pool_class = kinds.get(family, image_pools.ResNetPool)
    pool = pool_class(OmegaConf.create(described), **options)
    if family == "torchvision":
        pool.load_processor = small_transform  # the pool's own makes 224 pixels
    return pool


def small_transform(stage: str = "test") -> transforms.Compose:
    steps = [transforms.Resize(36), transforms.CenterCrop(SIZE), transforms.ToTensor()]
    normalise = transforms.Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    return transforms.Compose([*steps, normalise])


def reference(processor, samples: list[dict]) -> torch.Tensor:
    """Model inputs by the processor alone, one image at a time as task pools do."""
    rgb = [sample["image"].convert("RGB") for sample in samples]
    if isinstance(processor, transforms.Compose):
        return torch.stack([processor(image) for image in rgb])
    made = [processor(images=[image], return_tensors="pt") for image in rgb]
    return torch.cat([inputs["pixel_values"] for inputs in made])
