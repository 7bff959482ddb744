import logging
import tempfile
import unittest
from copy import deepcopy
from pathlib import Path

import torch
from fusion_bench.method import (
    SimpleAverageAlgorithm,
    TaskArithmeticAlgorithm,
    TiesMergingAlgorithm,
)
from fusion_bench.modelpool import BaseModelPool
from torch import Tensor, nn

from fusion_plugins import AWDAlgorithm

# Small task vectors: the published alpha would leave them as they are.
OPTIONS = {"alpha": 1e-3, "lr": 0.1, "iterations": 100}


class GenericTaskArithmetic(TaskArithmeticAlgorithm):
    """A weighted sum that AWD cannot know to be one, as it is another class."""


def make_pool(seed: int = 0) -> dict[str, nn.Module]:
    """A base and three experts that moved in partly shared directions."""
    torch.manual_seed(seed)
    base = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 4))
    shared = {n: torch.randn_like(p) for n, p in base.named_parameters()}
    pool = {"_pretrained_": base}
    for task in ("a", "b", "c"):
        pool[task] = deepcopy(base)
        for name, parameter in pool[task].named_parameters():
            own = torch.randn_like(parameter)
            parameter.data.add_(0.1 * (own + shared[name]))
    return pool


def flat(model: nn.Module, names=None) -> Tensor:
    state = model.state_dict()
    return torch.cat([state[n].flatten() for n in names or state]).double()


class TestAWDAlgorithm(unittest.TestCase):
    def setUp(self):
        self.pool = make_pool()
        # Fabric and FusionBench say a lot about runs of a few milliseconds.
        logging.disable(logging.INFO)
        self.addCleanup(logging.disable, logging.NOTSET)

    def assert_models_close(self, got: nn.Module, want: nn.Module, atol: float = 1e-6):
        self.assertEqual(list(got.state_dict()), list(want.state_dict()))
        for name, value in want.state_dict().items():
            torch.testing.assert_close(
                got.state_dict()[name], value, rtol=0, atol=atol, msg=name
            )

    def disentangled(self, algorithm: AWDAlgorithm) -> dict[str, nn.Module]:
        """base + (tau - delta) by hand, from the coefficients of a finished run."""
        result = algorithm.disentanglement
        base = self.pool["_pretrained_"].state_dict()
        pool = deepcopy(self.pool)
        for name in base:
            taus = torch.stack([self.pool[t].state_dict()[name] for t in result.tasks])
            taus = taus.double() - base[name].double()
            c = result.delta_coefficients(name)
            if c.dim() == 1:
                delta = torch.einsum("t,t...->...", c, taus)
            elif taus.dim() == 3:
                delta = torch.einsum("tr,trc->rc", c, taus)
            else:
                delta = torch.einsum("tr,tc->c", c, taus)
            for task in result.tasks:
                pool[task].state_dict()[name].sub_(delta.float())
        return pool

    def test_without_iterations_it_is_task_arithmetic(self):
        want = TaskArithmeticAlgorithm(0.3).run(deepcopy(self.pool))
        for base in (None, TaskArithmeticAlgorithm(0.3), GenericTaskArithmetic(0.3)):
            got = AWDAlgorithm(base=base, iterations=0).run(self.pool)
            self.assert_models_close(got, want)

    def test_disentangling_changes_the_merge(self):
        want = TaskArithmeticAlgorithm(0.3).run(deepcopy(self.pool))
        got = AWDAlgorithm(**OPTIONS).run(self.pool)
        moved = (flat(want) - flat(self.pool["_pretrained_"])).norm()
        self.assertGreater((flat(got) - flat(want)).norm(), 0.05 * moved)

    def test_the_disentangled_vectors_are_more_orthogonal(self):
        for granularity in ("model", "tensor", "row"):
            # Scale free, because a step suits one length of task vector: that of a bias
            # is far from that of the model.
            algorithm = AWDAlgorithm(
                granularity=granularity, alpha=0.01, scale_free=True
            )
            algorithm.run(self.pool)
            losses = algorithm.disentanglement.solution.losses
            self.assertLess(losses[-1, 1], 0.8 * losses[0, 1], granularity)
            self.assertLess(losses[-1, 0], losses[0, 0], granularity)

    def test_cosines_are_those_of_the_disentangled_models(self):
        algorithm = AWDAlgorithm(**OPTIONS)
        algorithm.run(self.pool)
        base = flat(self.pool["_pretrained_"])
        for cosines, pool in zip(
            algorithm.disentanglement.cosines(),
            (self.pool, self.disentangled(algorithm)),
            strict=True,
        ):
            taus = torch.stack([flat(pool[t]) - base for t in ("a", "b", "c")])
            unit = taus / taus.norm(dim=1, keepdim=True)
            torch.testing.assert_close(cosines, unit @ unit.T, rtol=0, atol=1e-5)

    def test_merge_is_the_formula_as_plain_loops(self):
        for granularity in ("model", "tensor", "row"):
            algorithm = AWDAlgorithm(granularity=granularity, **OPTIONS)
            got = algorithm.run(self.pool).state_dict()
            pool = self.disentangled(algorithm)
            base = pool["_pretrained_"].state_dict()
            for name, value in base.items():
                want = value.double().clone()
                for task in ("a", "b", "c"):
                    want += 0.3 * (pool[task].state_dict()[name] - value).double()
                torch.testing.assert_close(got[name].double(), want, rtol=0, atol=1e-6)

    def test_linear_and_generic_path_agree(self):
        for granularity in ("model", "tensor", "row"):
            options = OPTIONS | {"granularity": granularity}
            linear = AWDAlgorithm(base=TaskArithmeticAlgorithm(0.3), **options)
            generic = AWDAlgorithm(base=GenericTaskArithmetic(0.3), **options)
            self.assert_models_close(generic.run(self.pool), linear.run(self.pool))

    def test_simple_average_as_base(self):
        algorithm = AWDAlgorithm(base=SimpleAverageAlgorithm(), **OPTIONS)
        got = algorithm.run(self.pool)
        want = SimpleAverageAlgorithm().run(self.disentangled(algorithm))
        self.assert_models_close(got, want)

    def test_ties_as_base_sees_the_disentangled_experts(self):
        def ties():
            return TiesMergingAlgorithm(0.3, 60, [], "sum")

        algorithm = AWDAlgorithm(base=ties(), **OPTIONS)
        got = algorithm.run(self.pool)
        # Trimming has a threshold, so a rounding could flip an entry: compare most.
        want = ties().run(self.disentangled(algorithm))
        close = (flat(got) - flat(want)).abs() <= 1e-6
        self.assertGreater(close.double().mean(), 0.98)
        plain = ties().run(deepcopy(self.pool))
        close = (flat(got) - flat(plain)).abs() <= 1e-6
        self.assertLess(close.double().mean(), 0.5)

    def test_base_as_config_object_or_none(self):
        config = {
            "_target_": "fusion_bench.method.TaskArithmeticAlgorithm",
            "scaling_factor": 0.3,
        }
        want = AWDAlgorithm(**OPTIONS).run(self.pool)
        for base in (config, TaskArithmeticAlgorithm(0.3)):
            got = AWDAlgorithm(base=base, **OPTIONS).run(self.pool)
            self.assert_models_close(got, want, atol=0)
        other = AWDAlgorithm(base=config | {"scaling_factor": 0.6}, **OPTIONS)
        self.assertGreater((flat(other.run(self.pool)) - flat(want)).abs().max(), 1e-3)

    def test_excluded_tensors_are_merged_by_task_arithmetic(self):
        plain = TaskArithmeticAlgorithm(0.3).run(deepcopy(self.pool)).state_dict()
        matrices = ("0.weight", "2.weight")
        for choice in (
            {"exclude": ["*.bias", "1.*"]},
            {"include": ["*.weight"], "exclude": ["1.*"]},
        ):
            for base in (None, GenericTaskArithmetic(0.3)):
                got = AWDAlgorithm(base=base, **choice, **OPTIONS).run(self.pool)
                for name, value in got.state_dict().items():
                    distance = (value - plain[name]).abs().max()
                    if name in matrices:
                        self.assertGreater(distance, 1e-3, name)
                    else:
                        self.assertLessEqual(distance, 1e-6, name)

    def test_tensors_left_out_do_not_reach_the_cosines(self):
        whole, part = AWDAlgorithm(**OPTIONS), AWDAlgorithm(include=["2.*"], **OPTIONS)
        whole.run(self.pool)
        part.run(self.pool)
        small = make_pool()
        small = {name: model[2] for name, model in small.items()}
        alone = AWDAlgorithm(**OPTIONS)
        alone.run(small)
        torch.testing.assert_close(
            part.disentanglement.solution.coefficients,
            alone.disentanglement.solution.coefficients,
        )
        self.assertFalse(
            torch.allclose(
                part.disentanglement.solution.coefficients,
                whole.disentanglement.solution.coefficients,
            )
        )

    def test_kept_heads_may_differ(self):
        for task, classes in zip(("a", "b", "c"), (2, 3, 5), strict=True):
            self.pool[task][2] = nn.Linear(6, classes)
        with self.assertRaisesRegex(
            ValueError, r"expert 'a': tensor '2.weight'.*keep="
        ):
            AWDAlgorithm(**OPTIONS).run(self.pool)
        got = AWDAlgorithm(keep=["2.*"], **OPTIONS).run(self.pool)
        torch.testing.assert_close(got[2].weight, self.pool["_pretrained_"][2].weight)
        self.assertFalse(
            torch.equal(got[0].weight, self.pool["_pretrained_"][0].weight)
        )

    def test_callers_models_are_left_alone(self):
        before = {name: deepcopy(m.state_dict()) for name, m in self.pool.items()}
        bases = (
            None,
            SimpleAverageAlgorithm(inplace=True),
            GenericTaskArithmetic(0.3, inplace=True),
            TiesMergingAlgorithm(0.3, 60, [], "sum"),
        )
        for base in bases:
            for pool in (self.pool, BaseModelPool(dict(self.pool))):
                AWDAlgorithm(base=base, **OPTIONS).run(pool)
                for name, model in self.pool.items():
                    for key, value in model.state_dict().items():
                        self.assertTrue(torch.equal(value, before[name][key]), name)

    def test_scale_free_does_not_care_how_far_experts_moved(self):
        def coefficients(factor: float, scale_free: bool) -> Tensor:
            pool = deepcopy(self.pool)
            start = pool["_pretrained_"].state_dict()
            for task in ("a", "b", "c"):
                for name, value in pool[task].state_dict().items():
                    value.copy_(start[name] + factor * (value - start[name]))
            algorithm = AWDAlgorithm(scale_free=scale_free, iterations=50)
            algorithm.run(pool)
            return algorithm.disentanglement.solution.coefficients

        want = coefficients(1.0, True)
        self.assertGreater(want.abs().max(), 1e-2)
        torch.testing.assert_close(coefficients(4.0, True), want, rtol=1e-4, atol=1e-5)
        self.assertFalse(
            torch.allclose(coefficients(4.0, False), coefficients(1.0, False), rtol=0.1)
        )

    def test_one_expert_is_task_arithmetic(self):
        pool = {name: self.pool[name] for name in ("_pretrained_", "a")}
        want = TaskArithmeticAlgorithm(0.3).run(deepcopy(pool))
        self.assert_models_close(AWDAlgorithm(**OPTIONS).run(pool), want)

    def test_tied_weights_stay_tied_in_either_path(self):
        for model in self.pool.values():
            model[2] = nn.Linear(6, 6, bias=False)
            model.append(nn.Linear(6, 6, bias=False))
            model[3].weight = model[2].weight
        linear = AWDAlgorithm(**OPTIONS).run(self.pool)
        generic = AWDAlgorithm(base=GenericTaskArithmetic(0.3), **OPTIONS).run(
            self.pool
        )
        self.assertIs(linear[2].weight, linear[3].weight)
        self.assert_models_close(generic, linear)
        # An expert may hold two equal copies where the base holds one tensor.
        copied = deepcopy(self.pool)
        copied["a"][3].weight = nn.Parameter(copied["a"][2].weight.detach().clone())
        generic = AWDAlgorithm(base=GenericTaskArithmetic(0.3), **OPTIONS).run(copied)
        self.assert_models_close(generic, linear)

    def test_half_precision_experts(self):
        want = AWDAlgorithm(**OPTIONS).run(self.pool)
        half = {
            name: model if name == "_pretrained_" else deepcopy(model).half()
            for name, model in self.pool.items()
        }
        got = AWDAlgorithm(**OPTIONS).run(half)
        self.assertEqual(got[0].weight.dtype, torch.float32)
        self.assert_models_close(got, want, atol=3e-3)

    def test_options_survive_saving(self):
        algorithm = AWDAlgorithm(
            base={"_target_": "fusion_bench.method.SimpleAverageAlgorithm"},
            alpha=0.02,
            granularity="row",
            exclude=["*.bias"],
            scale_free=True,
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "method.yaml"
            algorithm.to_yaml(path)
            again = AWDAlgorithm.from_yaml(path)
        self.assertEqual(again.config, algorithm.config)
        self.assert_models_close(again.run(self.pool), algorithm.run(self.pool), atol=0)

    def test_unknown_option_is_refused_with_a_hint(self):
        with self.assertRaisesRegex(TypeError, "'alhpa'. Did you mean 'alpha'"):
            AWDAlgorithm(alhpa=0.1)


if __name__ == "__main__":
    unittest.main()
