"""AdaMerging as a FusionBench method, on a toy pool held in memory."""

import logging
import tempfile
import unittest
from copy import deepcopy
from pathlib import Path

import torch
from fusion_bench.method import TaskArithmeticAlgorithm
from fusion_bench.method.ties_merging.ties_merging_utils import (
    disjoint_merge_split,
    resolve_sign,
    topk_values_mask,
)
from fusion_bench.modelpool import BaseModelPool
from lightning import Fabric
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fusion_plugins import AdaMergingAlgorithm
from fusion_plugins.adamerging.options import OBJECTIVES, AdaMergingOptions
from fusion_plugins.awd.disentangle import disentangle
from fusion_plugins.awd.functional import Descent
from fusion_plugins.common.order import SampleOrder
from fusion_plugins.learned.artifacts import save_coefficients
from fusion_plugins.merged.heads import ClassificationHead
from fusion_plugins.pools import PoolAdapter
from fusion_plugins.task_vectors import TaskVectors

TASKS = ("one", "two", "three")
LOGGER = "fusion_plugins.adamerging.algorithm"


class ToyAdapter(PoolAdapter):
    """Random vectors as samples, and a random head per task."""

    def check_datasets(self, split):
        pass

    def dataset(self, task, split):
        generator = torch.Generator().manual_seed(TASKS.index(task))
        return torch.randn(30, 10, generator=generator)

    def prepare(self, device):
        pass

    def encode(self, sample):
        return sample

    def decode(self, stored):
        return stored

    def features(self, module, inputs):
        return module(inputs.to(module[0].weight.dtype)).float()

    def heads(self):
        generator = torch.Generator().manual_seed(9)
        weights = {task: torch.randn(5, 6, generator=generator) for task in self.tasks}
        return {task: ClassificationHead(2 * w) for task, w in weights.items()}


def toy_models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(10, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 6))
    models = {"_pretrained_": base}
    for task in TASKS:
        models[task] = deepcopy(base)
        for parameter in models[task].parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return models


def disentangled_models(models: dict, settings: dict) -> dict[str, nn.Module]:
    """The pool with every expert replaced by base + its disentangled task vector."""
    granularity = settings["granularity"]
    descent = Descent(alpha=settings["alpha"], lr=settings["lr"])
    experts = {task: models[task] for task in TASKS}
    vectors = TaskVectors.from_modules(models["_pretrained_"], experts)
    found = disentangle(vectors, descent, granularity=granularity)
    result = deepcopy(models)
    for key in vectors.keys:
        base = models["_pretrained_"].state_dict()[key]
        changes = [expert.state_dict()[key] - base for expert in experts.values()]
        delta = torch.zeros_like(base)
        for c, change in zip(found.delta_coefficients(key), changes, strict=True):
            rows = c if c.dim() == 0 or base.dim() == 1 else c[:, None]
            delta += rows * change
        for task, change in zip(TASKS, changes, strict=True):
            result[task].state_dict()[key].copy_(base + change - delta)
    return result


def trimmed_models(models: dict, keep: float) -> dict[str, nn.Module]:
    """The pool with task vectors trimmed and signs elected by FusionBench's functions."""
    base = parameters_to_vector(models["_pretrained_"].parameters())
    vectors = [parameters_to_vector(models[t].parameters()) - base for t in TASKS]
    kept, *_ = topk_values_mask(torch.stack(vectors).detach(), K=keep)
    selected, _ = disjoint_merge_split(kept, "sum", resolve_sign(kept))
    result = deepcopy(models)
    for task, vector in zip(TASKS, selected, strict=True):
        vector_to_parameters(base.detach() + vector, result[task].parameters())
    return result


def run(models=None, **options):
    """The algorithm after its run, and the merged model."""
    settings = {"preset": "official", "steps": 8, "lr": 1e-2, "guard_every": 4}
    settings |= {"checkpoint_dir": None}
    algorithm = AdaMergingAlgorithm(**(settings | options))
    algorithm.fabric = Fabric(accelerator="cpu", devices=1)
    models = toy_models() if models is None else models
    merged = algorithm.run(models, ToyAdapter(BaseModelPool(dict(models))))
    return algorithm, merged


class TestAdaMerging(unittest.TestCase):
    def assert_same_model(self, got, want, atol=0.0):
        for (name, a), b in zip(
            got.state_dict().items(), want.state_dict().values(), strict=True
        ):
            with self.subTest(name):
                torch.testing.assert_close(a, b, rtol=0, atol=atol)

    def test_no_steps_reduce_to_task_arithmetic(self):
        want = TaskArithmeticAlgorithm(scaling_factor=0.4).run(toy_models())
        for granularity in ("layer", "task"):
            _, merged = run(steps=0, init=0.4, granularity=granularity)
            self.assert_same_model(merged, want, atol=1e-6)

    def test_zero_coefficients_keep_the_base(self):
        _, merged = run(steps=0, init=0.0)
        self.assert_same_model(merged, toy_models()["_pretrained_"])

    def test_the_merged_model_is_the_formula_of_the_reported_coefficients(self):
        algorithm, merged = run(preset="fusion_bench", steps=8)
        models, applied = toy_models(), algorithm.result.applied
        self.assertEqual(algorithm.result.tasks, TASKS)
        self.assertGreater((applied - 0.3).abs().max().item(), 0.05)
        for column, key in enumerate(algorithm.result.layers):
            want = models["_pretrained_"].state_dict()[key].clone()
            for row, task in enumerate(TASKS):
                change = models[task].state_dict()[key] - toy_base(key)
                want += applied[row, column] * change
            torch.testing.assert_close(
                merged.state_dict()[key], want, rtol=0, atol=1e-6
            )

    def test_entropy_falls(self):
        algorithm, _ = run(steps=60)
        losses = [entry["loss"] for entry in algorithm.history]
        self.assertLess(sum(losses[-10:]), 0.9 * sum(losses[:10]))

    def test_every_objective_learns_what_it_says(self):
        """The first step's loss, worked out from the model that task arithmetic gives."""
        _, start = run(steps=0)
        adapter = ToyAdapter(BaseModelPool(dict(toy_models())))
        order, heads = SampleOrder(0, 16), adapter.heads()
        wanted = dict.fromkeys(OBJECTIVES, 0.0)
        for task in TASKS:
            expert, samples = toy_models()[task], adapter.dataset(task, "test")
            for draw in (0, 1):
                inputs = samples[order.batch(task, 30, draw)]
                logits = heads[task](start(inputs))
                sure = torch.distributions.Categorical(logits=logits)
                mean = torch.distributions.Categorical(sure.probs.mean(0))
                labels = heads[task](expert(inputs)).argmax(1)
                entropy = sure.entropy().mean().item()
                wanted["entropy"] += entropy
                marginal = 0.5 * mean.entropy().item()
                wanted["information_maximisation"] += entropy - marginal
                wanted["expert_labels"] -= sure.log_prob(labels).mean().item()
        for kind, want in wanted.items():
            with self.subTest(kind):
                algorithm, _ = run(steps=1, objective=kind, marginal_weight=0.5)
                self.assertAlmostEqual(algorithm.history[0]["loss"], want, places=4)

    def test_the_unpublished_presets_end_at_their_best_state(self):
        """From the start that agrees best; later checks without a gain end the run."""
        for preset in ("default", "fast"):
            for objective in OBJECTIVES:
                with self.subTest(preset=preset, objective=objective):
                    given = {"preset": preset, "objective": objective, "lr": 0.3}
                    algorithm, merged = run(steps=40, guard_every=2, **given)
                    agreements = [e["agreement"] for e in algorithm.guard_history]
                    best = agreements.index(max(agreements))
                    self.assertLessEqual(len(agreements), best + 4)
                    _, again = run(**given, steps=2 * best, guard_every=0)
                    self.assert_same_model(merged, again)
                    self.assertNotEqual(algorithm.options.init, 0.3)

    def test_one_task(self):
        models = {name: toy_models()[name] for name in ("_pretrained_", "two")}
        algorithm, merged = run(models)
        self.assertEqual(tuple(algorithm.result.applied.shape), (1, 6))
        self.assertFalse(
            torch.equal(merged[0].weight, models["_pretrained_"][0].weight)
        )

    def test_the_callers_models_are_left_alone(self):
        models = toy_models()
        for model in models.values():
            model.train()
        run(models)
        for name, model in toy_models().items():
            self.assert_same_model(models[name], model)
            self.assertTrue(models[name].training)
            self.assertTrue(all(p.requires_grad for p in models[name].parameters()))

    def test_the_same_seed_gives_the_same_bits(self):
        first, again, other = (run(seed=s)[0].result.raw for s in (3, 3, 4))
        self.assertTrue(torch.equal(first, again))
        self.assertFalse(torch.equal(first, other))

    def test_running_twice_starts_anew(self):
        algorithm, merged = run()
        models = toy_models()
        again = algorithm.run(models, ToyAdapter(BaseModelPool(dict(models))))
        self.assert_same_model(again, merged)
        self.assertEqual(len(algorithm.history), 8)

    def test_presets_differ_in_every_setting_and_reach_the_run(self):
        for name, want in AdaMergingOptions.PRESETS.items():
            algorithm = AdaMergingAlgorithm(preset=name)
            objective = algorithm.make_objective()
            self.assertEqual(algorithm.options.from_preset, want)
            self.assertEqual(objective.protocol.items() - want.items(), set())
            self.assertEqual(objective.kind, want["objective"])
            schedule = objective.schedule(3, SampleOrder(0, 16))
            self.assertEqual(schedule.steps, want["steps"])
            self.assertEqual(len(schedule.draws(0)[0][1]), want["batches_per_task"])
            self.assertEqual(objective.clamps, want["clamp"])
            sure = torch.tensor([[60.0, 0.0]])
            losses = objective.loss("one", sure, None)
            floor = -1e-8 if want["entropy_eps"] else 0
            self.assertAlmostEqual(losses.values.item(), floor, delta=1e-9 + abs(floor))
            self.assertEqual(losses.of_mean is None, want["objective"] == "entropy")

    def test_the_published_presets_are_what_was_published(self):
        shared = ("entropy", 1e-3, False)
        for name, want in {
            "official": (True, 500, 2, 0.0, *shared),
            "fusion_bench": (False, 1000, 1, 1e-8, *shared),
        }.items():
            options = AdaMergingAlgorithm(preset=name).options
            self.assertEqual(tuple(options.from_preset.values())[:7], want)

    def test_an_explicit_option_beats_the_preset_and_the_log_says_so(self):
        changed = {
            "clamp": False,
            "steps": 7,
            "batches_per_task": 3,
            "entropy_eps": 0.5,
        }
        with self.assertLogs(LOGGER, logging.INFO) as caught:
            objective = AdaMergingAlgorithm(**changed).make_objective()
            AdaMergingAlgorithm(preset="fusion_bench").make_objective()
        self.assertEqual(objective.protocol, changed)
        self.assertIn("preset 'default' with {'clamp': False", caught.output[0])
        self.assertIn("a collapse is announced, not stopped", caught.output[1])
        self.assertNotIn("a collapse is announced", caught.output[0])
        self.assertIn("'steps': 7", caught.output[0])
        self.assertIn("preset 'fusion_bench': {'clamp': False", caught.output[1])
        self.assertIn("'steps': 1000", caught.output[1])

    def test_the_clamp_bounds_what_is_applied_not_what_is_learned(self):
        clamped, _ = run(lr=0.3, clamp=True, steps=12)
        free, _ = run(lr=0.3, clamp=False, steps=12)
        self.assertLess(clamped.result.raw.min().item(), 0)
        self.assertEqual(clamped.result.applied.min().item(), 0)
        self.assertLessEqual(clamped.result.applied.max().item(), 1)
        self.assertTrue(torch.equal(free.result.raw, free.result.applied))
        self.assertLess(free.result.raw.min().item(), 0)

    def test_saved_coefficients_give_the_same_model_without_data(self):
        variants = (
            {},
            {"preset": "fusion_bench"},
            {"granularity": "task"},
            {"trim": 0.2},
            {"disentangle": {"alpha": 0.01}},
            {"disentangle": {"alpha": 0.01, "granularity": "row"}, "trim": 0.5},
        )
        for options in variants:
            with self.subTest(options), tempfile.TemporaryDirectory() as folder:
                algorithm, merged = run(**options)
                path = save_coefficients(algorithm.result, Path(folder))
                for given in (folder, str(path)):
                    again = AdaMergingAlgorithm(coefficients=given, **options)
                    self.assert_same_model(again.run(toy_models()), merged)
                    self.assertEqual(again.history, [])

    def test_disentangle_equals_adamerging_of_disentangled_experts(self):
        for granularity in ("model", "tensor", "row"):
            with self.subTest(granularity):
                models = {n: model.double() for n, model in toy_models().items()}
                settings = {"alpha": 0.001, "lr": 0.5, "granularity": granularity}
                apart = disentangled_models(models, settings)
                want, model = run(apart)
                got, merged = run(models, disentangle=settings)
                plain, _ = run(models)
                moved = (got.result.raw - plain.result.raw).abs().max()
                self.assertGreater(moved.item(), 1e-4)
                torch.testing.assert_close(
                    got.result.raw, want.result.raw, rtol=0, atol=1e-6
                )
                self.assert_same_model(merged, model, atol=1e-6)

    def test_trim_equals_adamerging_of_experts_trimmed_by_fusion_bench(self):
        models = {n: model.double() for n, model in toy_models().items()}
        want, model = run(trimmed_models(models, 0.2), granularity="task")
        got, merged = run(models, granularity="task", trim=0.2)
        plain, _ = run(models, granularity="task")
        self.assertGreater((got.result.raw - plain.result.raw).abs().max().item(), 1e-4)
        torch.testing.assert_close(got.result.raw, want.result.raw, rtol=0, atol=1e-6)
        self.assert_same_model(merged, model, atol=1e-6)

    def test_only_the_kept_tensors_stay(self):
        algorithm, merged = run(keep=["0.*"])
        base = toy_models()["_pretrained_"]
        self.assertTrue(torch.equal(merged[0].weight, base[0].weight))
        self.assertFalse(torch.equal(merged[3].weight, base[3].weight))
        self.assertNotIn("0.weight", algorithm.result.layers)

    def test_options_that_only_cost_time_change_nothing(self):
        want, _ = run()
        for options in (
            {"batch_tasks": True},
            {"batch_tasks": False},
            {"cache": "none", "num_workers": 0},
            {"cache": "device"},
            {"guard_every": 0},
            {"log_every": 3},
            {"offload": True},
        ):
            with self.subTest(options):
                got, _ = run(**options)
                torch.testing.assert_close(
                    got.result.raw, want.result.raw, rtol=0, atol=1e-6
                )

    def test_fractions_and_limits_of_samples(self):
        seen = {}
        for options in ({}, {"fraction": 0.5}, {"max_samples": 4}):
            with self.subTest(options), tempfile.TemporaryDirectory() as folder:
                algorithm, _ = run(**options, checkpoint_dir=folder)
                seen[str(options)] = algorithm.result.raw
        first, half, few = seen.values()
        self.assertFalse(torch.equal(first, half) or torch.equal(half, few))

    def test_it_saves_and_reloads_its_settings(self):
        algorithm = AdaMergingAlgorithm(preset="fusion_bench", steps=5, trim=0.2)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "method.yaml"
            algorithm.to_yaml(path)
            again = AdaMergingAlgorithm.from_yaml(path)
        self.assertEqual(again.options, algorithm.options)
        self.assertEqual(again.settings(), algorithm.settings())


def toy_base(key: str) -> torch.Tensor:
    return toy_models()["_pretrained_"].state_dict()[key]


if __name__ == "__main__":
    unittest.main()
