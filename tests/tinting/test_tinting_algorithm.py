"""Model Tinting on a pool of small networks."""

import logging
import tempfile
import unittest
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from fusion_bench.method import TaskArithmeticAlgorithm
from fusion_bench.modelpool import BaseModelPool
from torch import Tensor, nn

from fusion_plugins import TintingAlgorithm
from fusion_plugins.adaptation import SampleOrder
from fusion_plugins.merged.heads import ClassificationHead
from fusion_plugins.merged.model import TintedModel
from fusion_plugins.pools import PoolAdapter

CLASSES = {"birds": 3, "cars": 4, "dogs": 5}
ROWS, FEATURES = 24, 6
OPTIONS = {
    "rounds": 4,
    "batch_size": 8,
    "guard_every": 0,
    "num_workers": 0,
    "save_model": False,
    "seed": 0,
}


class Rows(PoolAdapter):
    """Random rows as samples, random frozen heads."""

    def prepare(self, device): ...

    def check_datasets(self, split): ...

    def dataset(self, task: str, split: str) -> list[Tensor]:
        torch.manual_seed(len(task))
        return list(torch.randn(ROWS, 8))

    def encode(self, sample: Tensor) -> Tensor:
        return sample

    def decode(self, stored: Tensor) -> Tensor:
        return stored

    def features(self, module: nn.Module, inputs: Tensor) -> Tensor:
        return F.normalize(module(inputs), dim=1)

    def heads(self) -> dict[str, ClassificationHead]:
        torch.manual_seed(5)
        return {
            task: ClassificationHead(3 * torch.randn(CLASSES[task], FEATURES))
            for task in self.tasks
        }


def make_models(tasks=tuple(CLASSES)) -> dict[str, nn.Module]:
    """A base and experts that moved away from it."""
    torch.manual_seed(0)
    base = nn.Sequential(
        nn.Linear(8, 10), nn.LayerNorm(10), nn.GELU(), nn.Linear(10, FEATURES)
    )
    models = {"_pretrained_": base}
    for task in tasks:
        models[task] = deepcopy(base)
        for parameter in models[task].parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return models


def run(models=None, **options) -> tuple[TintedModel, TintingAlgorithm]:
    pool = BaseModelPool(make_models() if models is None else models)
    algorithm = TintingAlgorithm(**(OPTIONS | options))
    return algorithm.run(pool, Rows(pool)), algorithm


def frozen_heads() -> dict[str, nn.Module]:
    adapter = Rows(BaseModelPool(make_models()))
    adapter.prepare(torch.device("cpu"))
    return adapter.heads()


class TestTintingAlgorithm(unittest.TestCase):
    def setUp(self):
        # Fabric and FusionBench say a lot about runs of a few milliseconds.
        logging.disable(logging.WARNING)
        self.addCleanup(logging.disable, logging.NOTSET)

    def assert_close(self, got: Tensor, want: Tensor, atol: float = 1e-6):
        torch.testing.assert_close(got, want, rtol=0, atol=atol)

    def test_first_step_matches_autograd_through_an_explicit_merge(self):
        """Cross-entropy to the expert's argmax; Adam's first step is lr * sign."""
        models = make_models()
        model, algorithm = run(rounds=1, lr=1e-3, schedule_kind="joint", clamp=False)
        base, names = models["_pretrained_"], list(CLASSES)
        pool = BaseModelPool(models)
        adapter = Rows(pool)
        state = {n: p.detach() for n, p in base.named_parameters()}
        coefficients = torch.full((3, len(state)), 0.3, requires_grad=True)
        merged = dict(state)
        for layer, name in enumerate(state):
            for t, task in enumerate(names):
                change = models[task].get_parameter(name).detach() - state[name]
                merged[name] = merged[name] + coefficients[t, layer] * change
        loss, heads = 0.0, {}
        for task, head in adapter.heads().items():
            samples = SampleOrder(0, 8).batch(task, ROWS, 0)
            rows = torch.stack(adapter.dataset(task, "test"))[samples]
            with torch.no_grad():
                label = head(F.normalize(models[task](rows), dim=1)).argmax(1)
            heads[task] = head.weight.detach().clone().requires_grad_(True)
            features = torch.func.functional_call(base, merged, (rows,))
            logits = F.normalize(features, dim=1) @ heads[task].t()
            loss = loss + F.cross_entropy(logits, label)
        loss.backward()
        want = 0.3 - 1e-3 * coefficients.grad.sign()
        self.assert_close(algorithm.result.raw, want.detach(), atol=2e-5)
        for task, weight in heads.items():
            want = weight - 1e-3 * weight.grad.sign()
            self.assert_close(model.head(task).weight.data, want.detach(), atol=2e-5)
        self.assertAlmostEqual(algorithm.history[0]["loss"], loss.item(), places=4)

    def test_without_a_round_it_is_task_arithmetic_with_the_frozen_heads(self):
        model, algorithm = run(rounds=0)
        want = TaskArithmeticAlgorithm(scaling_factor=0.3).run(
            BaseModelPool(make_models())
        )
        for name, value in want.state_dict().items():
            self.assert_close(model.trunk.state_dict()[name], value)
        frozen = frozen_heads()
        self.assertEqual(set(frozen), set(CLASSES))
        for task, head in frozen.items():
            self.assertTrue(torch.equal(model.head(task).weight, head.weight))
            self.assertEqual(model.head(task).bias.abs().max().item(), 0)

    def test_frozen_parts_stay_and_the_others_move(self):
        frozen = {t: h.weight for t, h in frozen_heads().items()}
        model, algorithm = run(learn_coefficients=False)
        self.assertTrue((algorithm.result.raw == torch.tensor(0.3)).all())
        for task, weight in frozen.items():
            self.assertGreater((model.head(task).weight - weight).abs().max(), 1e-3)
        model, algorithm = run(learn_tints=False)
        self.assertGreater((algorithm.result.raw - 0.3).abs().max(), 1e-3)
        for task, weight in frozen.items():
            self.assertTrue(torch.equal(model.head(task).weight, weight))

    def test_learning_raises_the_agreement_with_the_experts(self):
        for options in ({}, {"tint": "3"}, {"sampling": "confidence_gap"}):
            with self.subTest(**options):
                settings = {"rounds": 40, "guard_every": 120, "guard_samples": ROWS}
                _, algorithm = run(**(settings | options))
                first, last = algorithm.guard_history
                self.assertGreater(last["agreement"], first["agreement"] + 0.1)

    def test_one_task_alone(self):
        model, algorithm = run(make_models(["cars"]), rounds=3)
        self.assertEqual(model.tasks, ("cars",))
        self.assertEqual(tuple(algorithm.result.raw.shape), (1, 6))

    def test_coefficients_are_clamped_unless_told_otherwise(self):
        clamped = run(init=1.5, rounds=0)[1].result
        self.assertTrue((clamped.applied == 1).all())
        self.assertTrue(
            (run(init=1.5, rounds=0, clamp=False)[1].result.applied > 1).all()
        )

    def test_the_caller_keeps_its_models(self):
        models = make_models()
        before = {n: deepcopy(m.state_dict()) for n, m in models.items()}
        run(models, tint=["head", "0"])
        self.assertEqual(len(before), 4)
        for name, state in before.items():
            for key, value in state.items():
                self.assertTrue(torch.equal(models[name].state_dict()[key], value))

    def test_the_same_seed_gives_the_same_result(self):
        one, other = (run(tint=["head", "3"])[0].state_dict() for _ in range(2))
        for name, value in one.items():
            self.assertTrue(torch.equal(value, other[name]), name)
        third, _ = run(tint=["head", "3"], seed=1)
        self.assertFalse(torch.equal(third.head("cars").weight, one_head(one)))

    def test_settings_survive_yaml(self):
        algorithm = TintingAlgorithm(
            tint=["head", "blocks.*"], sampling="top_p", top_p=0.25, tint_lr=0.5, seed=3
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "method.yaml"
            algorithm.to_yaml(path)
            again = TintingAlgorithm.from_yaml(path)
        self.assertEqual(again.settings(), algorithm.settings())
        self.assertEqual(again.options, algorithm.options)

    def test_mistakes_are_refused(self):
        for options, error, text in (
            ({"tints": "head"}, TypeError, "no option 'tints'.*Did you mean 'tint'"),
            ({"labels": "loud"}, ValueError, "labels is 'loud', expected one of"),
            ({"tint": []}, ValueError, "tint is .*, expected 'head', a module path"),
            ({"tint": "nowhere"}, ValueError, "no layer is named 'nowhere'"),
            (
                {"learn_tints": False, "learn_coefficients": False},
                ValueError,
                "nothing is learned",
            ),
        ):
            with self.subTest(**options), self.assertRaisesRegex(error, text):
                run(**options)


def one_head(state: dict[str, Tensor]) -> Tensor:
    """The head of cars in a tinted model's state."""
    (name,) = [n for n in state if n.startswith("switches.0") and "cars.weight" in n]
    return state[name]


if __name__ == "__main__":
    unittest.main()
