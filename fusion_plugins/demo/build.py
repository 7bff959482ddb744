"""Build a pool of small CLIP models: contrastive pretraining, then one expert per task."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import CLIPModel

from . import image_build
from .builtin import TaskData, builtin_tasks
from .clip import (
    image_features,
    make_model,
    make_processor,
    prompt_tokens,
    text_features,
    zero_shot_head,
)
from .image_build import (
    ImageTensors,
    fit,
    generator,
    normalise,
    one_thread,
    save_pool,
    to_tensors,
    training,
)
from .pool_folder import build_folder, cached_root
from .recipe import DemoRecipe

_MAX_LOGIT_SCALE = float(np.log(100))  # as in CLIP
_WARM_UP = 0.1  # share of the steps
_NEGATIVE = -0.5  # dark and light change places, at half the contrast


def ensure_pool(
    recipe: DemoRecipe | None = None, root: str | os.PathLike | None = None
) -> Path:
    """The folder of the built-in pool, built first if it is not there.

    Args:
        recipe: What to build (default: `DemoRecipe()`).
        root: Where (default: the recipe's own folder in the cache).
    """
    recipe = recipe or DemoRecipe()
    root = cached_root("demo", recipe) if root is None else root
    return build_pool(recipe, lambda: builtin_tasks(recipe), root)


def build_pool(
    recipe: DemoRecipe,
    load_tasks: Callable[[], Sequence[TaskData]],
    root: str | os.PathLike,
    load_other: Callable[[], Sequence[TaskData]] = tuple,
) -> Path:
    """Train and save a pool at `root`; see `build_folder`.

    Args:
        recipe: Sizes, steps, seed. Its `tasks` must be those of `load_tasks`.
        load_tasks: Gives the tasks that get an expert; called only if needed.
        root: The new folder; must not exist or be empty.
        load_other: Gives tasks used only for pretraining.

    Raises:
        ValueError: `root` holds something else or cannot be written.
    """

    def write(folder: Path) -> dict:
        return _write_pool(folder, recipe, list(load_tasks()), list(load_other()))

    return build_folder(root, recipe, write)


def _write_pool(
    folder: Path, recipe: DemoRecipe, tasks: list[TaskData], other: list[TaskData]
) -> dict:
    processor = make_processor(recipe)

    def tensors(task: TaskData) -> ClipTask:
        tokens = prompt_tokens(
            task.name, task.class_names, task.templates, processor.tokenizer
        )
        return ClipTask(**vars(to_tensors(task)), tokens=tokens)

    sets, extra = [*map(tensors, tasks)], [*map(tensors, other)]
    with training(recipe) as bar:
        count = min(len(sets), torch.get_num_threads())
        bar.set_description(f"Training the pool, {count} experts at a time")
        base = make_model(recipe, processor.tokenizer)
        pretrain(base, sets + extra, recipe, bar.update)
        experts = train_experts(base, sets, recipe, bar.update)
    scores = {
        "pretrained": {data.name: accuracy(base, data) for data in sets},
        "experts": {data.name: accuracy(experts[data.name], data) for data in sets},
    }
    about = save_pool(folder, tasks, base, experts, processor, scores)
    return about | {"pretraining_only": [task.name for task in other]}


@dataclass(frozen=True)
class ClipTask(ImageTensors):
    """With token ids (templates, classes, longest prompt) of its prompts."""

    tokens: Tensor


def _cosine(
    parameters: Iterable[nn.Parameter], lr: float, steps: int, weight_decay: float
) -> tuple[Optimizer, LRScheduler]:
    """AdamW with warm-up and a cosine schedule down to zero."""
    adamw = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    warm_up = max(1, round(_WARM_UP * steps))

    def factor(step: int) -> float:
        rising = min(1.0, (step + 1) / warm_up)
        return rising * (1 + np.cos(np.pi * min(1.0, step / steps))) / 2

    return adamw, torch.optim.lr_scheduler.LambdaLR(adamw, factor)


def _contrastive_loss(
    model: CLIPModel, images: Tensor, captions: Sequence[Tensor]
) -> Tensor:
    """Find each image's caption (token ids) among the batch's different captions."""
    length = max(len(caption) for caption in captions)
    padding = model.config.text_config.pad_token_id
    padded = torch.full((len(captions), length), padding)
    for row, caption in zip(padded, captions, strict=True):
        row[: len(caption)] = caption
    different, target = torch.unique(padded, dim=0, return_inverse=True)
    texts = text_features(model, different)
    logits = image_features(model, images) @ texts.T * model.logit_scale.exp()
    return cross_entropy(logits, target)


def pretrain(
    model: CLIPModel,
    tasks: Sequence[ClipTask],
    recipe: DemoRecipe,
    on_step: Callable[[], None],
) -> None:
    """Train both towers in place on noisy images, most of them negatives (contrastive)."""
    draw = generator(recipe.seed, "pretraining")
    draw_negatives = generator(recipe.seed, "negatives")
    kept = [
        torch.randperm(len(task.y_train), generator=draw)[: recipe.pretrain_images]
        for task in tasks
    ]

    def loss() -> Tensor:
        images, captions = [], []
        for t in torch.randint(len(tasks), (recipe.batch_size,), generator=draw):
            pick = kept[t][torch.randint(len(kept[t]), (), generator=draw)]
            template = torch.randint(len(tasks[t].tokens), (), generator=draw)
            images.append(tasks[t].x_train[pick])
            captions.append(tasks[t].tokens[template, tasks[t].y_train[pick]])
        pixels = normalise(torch.stack(images))
        negative = torch.rand(len(pixels), generator=draw_negatives)
        pixels[negative < recipe.pretrain_negatives] *= _NEGATIVE
        noise = torch.randn(pixels.shape, generator=draw)
        pixels = pixels + 2 * recipe.pretrain_noise * noise  # pixels span 2
        return _contrastive_loss(model, pixels, captions)

    def clamp() -> None:
        model.logit_scale.data.clamp_(max=_MAX_LOGIT_SCALE)
        on_step()

    steps, decay = recipe.pretrain_steps, recipe.pretrain_weight_decay
    adamw = _cosine(model.parameters(), recipe.pretrain_lr, steps, decay)
    with one_thread():
        fit(model, loss, steps, *adamw, clamp)


def train_expert(
    pretrained: CLIPModel,
    task: ClipTask,
    recipe: DemoRecipe,
    on_step: Callable[[], None],
) -> CLIPModel:
    """A copy whose vision tower is fine-tuned on one task; all else stays frozen."""
    model = copy.deepcopy(pretrained)
    model.requires_grad_(False)
    model.vision_model.requires_grad_(True)
    head = zero_shot_head(model, task.tokens) * model.logit_scale.exp()
    draw = generator(recipe.seed, task.name)

    def loss() -> Tensor:
        pick = torch.randint(len(task.y_train), (recipe.batch_size,), generator=draw)
        features = image_features(model, normalise(task.x_train[pick]))
        return cross_entropy(features @ head.T, task.y_train[pick])

    steps, decay = recipe.expert_steps, recipe.expert_weight_decay
    adamw = _cosine(model.vision_model.parameters(), recipe.expert_lr, steps, decay)
    fit(model, loss, steps, *adamw, on_step)
    return model


def train_experts(
    pretrained: CLIPModel,
    tasks: Sequence[ClipTask],
    recipe: DemoRecipe,
    on_step: Callable[[], None],
) -> dict[str, CLIPModel]:
    """One expert per task; as many at a time as torch had threads, with one each."""
    lock = threading.Lock()

    def count_step() -> None:
        with lock:
            on_step()

    def train(task: ClipTask) -> CLIPModel:
        return train_expert(pretrained, task, recipe, count_step)

    with one_thread() as threads:
        with ThreadPoolExecutor(
            min(len(tasks), threads), initializer=torch.set_num_threads, initargs=(1,)
        ) as workers:
            experts = list(workers.map(train, tasks))
    return {t.name: e for t, e in zip(tasks, experts, strict=True)}


def accuracy(model: CLIPModel, task: ClipTask) -> float:
    """Share of test images whose nearest class prompt is the right one, 0 to 1."""
    head = zero_shot_head(model, task.tokens)
    return image_build.accuracy(lambda x: image_features(model, x) @ head.T, task)
