"""Random towers, experts, images and heads on which a step of adaptation is timed."""

from __future__ import annotations

import sys
from copy import deepcopy

import numpy as np
import torch
from lightning import Fabric
from stand_ins import vit_b32_config
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from fusion_plugins.adaptation import SampleOrder, TaskSamples
from fusion_plugins.adaptation.sources import KeptSamples
from fusion_plugins.merged.heads import ClassificationHead
from fusion_plugins.task_vectors import Checkpoint, TaskVectors
from fusion_plugins.task_vectors.checkpoint import module_checkpoint

_EMBEDDING = 512
_DISTANCE = 2.0  # norm of a task vector
_NOISE_ENTRIES = 2**23


def _config(size: str) -> CLIPVisionConfig:
    if size == "vit-b32":
        return vit_b32_config()
    if size == "vit-l14":
        shape = (1024, 4096, 24, 16, 224, 14)
    elif size == "tiny":  # for tests
        shape = (16, 32, 2, 2, 16, 8)
    else:  # 10.7M parameters; images of 32 pixels as in the demo pool, or of 24
        shape = (384, 1536, 6, 6, 32 if size == "small" else 24, 8)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "image_size", "patch_size")
    return CLIPVisionConfig(**dict(zip(names, shape, strict=True)))


class RandomExpert(Checkpoint):
    """The base plus noise, made when read: no expert's memory shows in the figures."""

    def __init__(self, base: Checkpoint, noise: Tensor, number: int):
        super().__init__(f"expert {number}", base.specs)
        self._base, self._noise = base, noise
        self._starts, place = {}, 7_919 * number
        for name, spec in base.specs.items():
            entries = torch.Size(spec.shape).numel()
            self._starts[name] = place % (len(noise) - entries)
            place += entries + 104_729 * number

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        shape = torch.Size(self.specs[name].shape)
        start = self._starts[name]
        change = self._noise[start : start + shape.numel()].view(shape)
        value = self._base.read(name, rows)
        if not value.is_floating_point():
            return value
        return value + (change if rows is None else change[rows])


class StandIn:
    """All that a worker needs, the same in every process.

    Args:
        job: size, tasks, batch, batches (per task, kept), device, precision, and
            memory_cap (GB, or None).
    """

    def __init__(self, job: dict):
        torch.manual_seed(0)
        self.job = job
        self.fabric = Fabric(
            accelerator=job["device"], devices=1, precision=job["precision"]
        )
        self.device = self.fabric.device
        if job["memory_cap"] and self.device.type == "cuda":
            whole = torch.cuda.get_device_properties(self.device).total_memory
            share = min(job["memory_cap"] * 1e9 / whole, 1.0)
            torch.cuda.set_per_process_memory_fraction(share, self.device)
        config = _config(job["size"])
        self.tower = CLIPVisionModel(config).eval()
        self.projection = nn.Linear(config.hidden_size, _EMBEDDING, bias=False)
        self.projection.to(self.device).requires_grad_(False)
        self.names = [f"task_{number}" for number in range(job["tasks"])]
        shape = (3, config.image_size, config.image_size)
        count = job["batch"] * job["batches"]
        self.images = {
            n: torch.randn(count, *shape, device=self.device) for n in self.names
        }
        self.heads = {
            name: nn.functional.normalize(
                torch.randn(10 + 5 * number, _EMBEDDING, device=self.device)
            )
            for number, name in enumerate(self.names)
        }
        self.scale = 100.0  # CLIP's own, once trained

    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        embeddings = self.projection(module(inputs)[1])
        return embeddings / embeddings.norm(dim=-1, keepdim=True)

    def head(self, task: str) -> ClassificationHead:
        return ClassificationHead(self.heads[task] * self.scale)

    def source(self, task: str) -> KeptSamples:
        """The task's images on the device, in the order of a run with seed 0."""
        images, order = self.images[task], SampleOrder(0, self.job["batch"])
        samples = TaskSamples(task, images, order, lambda kept: kept, self.device)
        return KeptSamples(samples, np.arange(len(images)), self.device)

    def _experts(self) -> dict[str, RandomExpert]:
        entries = sum(p.numel() for p in self.tower.parameters())
        noise = torch.randn(_NOISE_ENTRIES).mul_(_DISTANCE / entries**0.5)
        base = module_checkpoint(self.tower, "the base")
        return {n: RandomExpert(base, noise, i) for i, n in enumerate(self.names)}

    def task_vectors(self) -> TaskVectors:
        return TaskVectors(module_checkpoint(self.tower, "the base"), self._experts())

    @torch.no_grad()
    def expert_modules(self) -> list[nn.Module]:
        """The experts as whole models, for loops that need them."""
        modules = []
        for expert in self._experts().values():
            module = deepcopy(self.tower)
            for name, parameter in module.named_parameters():
                parameter.copy_(expert.read(name))
            modules.append(module)
        return modules


def run_worker(workers: dict, job: dict) -> dict:
    """A worker's figures, or that the device's memory was not enough."""
    try:
        return workers[job["worker"]](job)
    except torch.cuda.OutOfMemoryError as error:
        print(error, file=sys.stderr)
        return {"out_of_memory": 1}
