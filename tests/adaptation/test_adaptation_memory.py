"""The memory plan: against what a run allocates, and for a large pool."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from toy_engine import FEATURES, TASKS, cpu_fabric, heads, make_engine, models, sources
from transformers import CLIPVisionConfig, CLIPVisionModel

from fusion_plugins.adaptation import AdaptationTask, MergedWeights, Predictor
from fusion_plugins.adaptation.layers import Layer, empty_stack
from fusion_plugins.adaptation.memory import MemoryPlan, activation_bytes
from fusion_plugins.adaptation.weights import STORAGE_DTYPES
from fusion_plugins.task_vectors import TaskVectors

WIDTH, TOKENS = 256, 12


class Deep(nn.Module):
    """Sixteen layers over tokens: more bytes of activations than of weights."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(16))
        self.out = nn.Linear(WIDTH, FEATURES)

    def forward(self, inputs):
        for layer in self.layers:
            inputs = F.gelu(layer(inputs))
        return self.out(inputs.mean(1))

    @staticmethod
    def samples(count: int) -> torch.Tensor:
        return torch.randn(count, TOKENS, WIDTH)


def allocated(run) -> tuple[object, int]:
    """What `run` returns, and the most bytes of tensors that it held at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = run()
    held = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return result, most


@pytest.mark.parametrize(
    "storage, batch_tasks",
    [("float32", True), ("bfloat16", False), ("int8", True), ("int4", False)],
)
def test_the_plan_is_what_a_run_allocates(storage, batch_tasks):
    base, experts = models(Deep)
    data, head, module = sources(Deep, batch_size=32), heads(), deepcopy(base)
    tasks = [AdaptationTask(name, data[name], head[name]) for name in experts]
    task_vectors = TaskVectors.from_modules(base, experts)

    def run():
        weights = MergedWeights(module, task_vectors, storage_dtype=storage)
        forward = lambda module, inputs: module(inputs)  # noqa: E731
        predictor = Predictor(weights, tasks, forward, cpu_fabric())
        engine = make_engine(
            predictor=predictor, steps=2, batches_per_task=1, batch_tasks=batch_tasks
        )
        engine.run()
        return engine.memory_plan()

    plan, measured = allocated(run)
    measured += plan.module  # there before
    assert plan.batch_tasks == (TASKS if batch_tasks else 1)
    assert measured == pytest.approx(plan.peak, rel=0.15), str(plan)


def plan_for_large_clip(storage: str, precision: torch.dtype) -> MemoryPlan:
    """20 experts of ViT-L/14, 16 images of one task in a forward; nothing is allocated."""
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
    )
    with FakeTensorMode():
        module = CLIPVisionModel(config).eval()
        layers = []
        for name, value in module.named_parameters():
            stack = empty_stack(
                20, tuple(value.shape), STORAGE_DTYPES[storage], torch.float32
            )
            layers.append(Layer(name, value, value.detach().flatten(), stack))
        half = precision == torch.bfloat16
        with torch.autocast("cpu", precision, enabled=half):
            activations = activation_bytes(
                module, lambda: module(torch.zeros(16, 3, 224, 224))
            )
    return MemoryPlan.of(module, layers, activations, 1, 20)


@pytest.mark.parametrize(
    "storage, precision, gigabytes",
    [
        ("int8", torch.bfloat16, 15.2),
        ("int4", torch.float32, 15.2),
    ],
)
def test_twenty_experts_of_a_large_clip_fit_16_gb(storage, precision, gigabytes):
    plan = plan_for_large_clip(storage, precision)
    assert plan.peak / 1e9 == pytest.approx(gigabytes, abs=0.1), str(plan)
    assert "at batch_tasks=1: " in str(plan)
    in_cpu_memory = MemoryPlan(**{**vars(plan), "offload": True})
    assert plan.peak - in_cpu_memory.peak == plan.task_vectors
    assert f"task vectors {plan.task_vectors / 1e9:.1f} GB in CPU" in str(in_cpu_memory)
