"""What a run learns, step by step, on a toy network."""

import logging

import pytest
import torch
from toy_tinting import BLOCK, TASKS, ToyNet, Watch, make, tint, toy_pool, watched

from fusion_plugins import TintingAlgorithm
from fusion_plugins.adaptation import MergedWeights, SampleOrder
from fusion_plugins.task_vectors import TaskVectors
from fusion_plugins.task_vectors.ties import ties_trim_
from fusion_plugins.tinting import functional

INNER_KEYS = [f"{BLOCK}.{n}" for n, _ in ToyNet().blocks[1].named_parameters()]


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


# -- schedule -------------------------------------------------------------------------


def test_each_step_moves_the_coefficients_and_one_tasks_tint():
    _, watch = watched(rounds=5)
    order = SampleOrder(0, 8)
    assert len(watch.reports) == 15
    for step, report in enumerate(watch.reports):
        task = list(TASKS)[order.rounds(3, step // 3)[step % 3]]
        assert watch.moved(step) == {"coefficients", task}
        assert report.seen == {task: 8}


def test_joint_steps_move_everything_once_a_round():
    _, watch = watched(rounds=5, schedule_kind="joint")
    assert len(watch.reports) == 5
    for step, report in enumerate(watch.reports):
        assert watch.moved(step) == {"coefficients", *TASKS}
        assert report.seen == dict.fromkeys(TASKS, 8)


def test_the_order_of_tasks_depends_on_seed_and_round_only():
    def visits(**options):
        _, watch = watched(**({"rounds": 6} | options))
        return ["".join(report.seen) for report in watch.reports]

    plain = visits()
    assert visits(lr=0.1, batch_size=4, tint=BLOCK, sampling="top_p") == plain
    assert visits(rounds=3) == plain[:9]
    assert visits(seed=1) != plain
    rounds = [tuple(plain[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(r) == sorted(TASKS) for r in rounds) and len(set(rounds)) > 2


def test_by_default_a_batch_has_32_samples_and_there_are_500_rounds():
    algorithm = TintingAlgorithm()
    options, objective = algorithm.options, algorithm.make_objective()
    assert objective.schedule(8, SampleOrder(0, 32)).steps == 4000
    assert (options.batch_size, options.lr, options.init) == (32, 1e-2, 0.3)
    assert objective.clamps and options.sampling == "none" and options.tint == ("head",)


# -- the step -------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("sampling", ["none", "confidence_gap", "top_p"])
def test_a_run_is_the_plain_loop_with_autograd(labels, sampling):
    """The whole method again: T experts, a graph through the merge, one Adam."""
    model, watch = watched(labels=labels, sampling=sampling, rounds=6, top_p=0.4)
    pool = {name: state_of(net) for name, net in toy_pool().items()}
    base = pool.pop("_pretrained_")
    adapter, engine = watch.algorithm.adapter, watch.engine
    frozen = adapter.heads()
    coefficients = torch.full((3, len(base)), 0.3, requires_grad=True)
    heads = {
        task: (head.weight.detach().clone(), torch.zeros(len(head.weight)))
        for task, head in frozen.items()
    }
    learned = [p.requires_grad_(True) for pair in heads.values() for p in pair]
    adam = torch.optim.Adam([coefficients, *learned], lr=1e-2)
    order, names = SampleOrder(0, 8), list(TASKS)

    def features(weights, rows):
        net = ToyNet()
        hidden = torch.func.functional_call(net, weights, (rows,))
        projected = hidden @ adapter.outer_module.projection.weight.t()
        return torch.nn.functional.normalize(projected, dim=1)

    for step in range(18):
        task = names[order.rounds(3, step // 3)[step % 3]]
        rows = torch.stack(adapter.dataset(task, "test"))
        rows = rows[order.batch(task, len(rows), step // 3)]
        with torch.no_grad():
            teacher = frozen[task](features(pool[task], rows)).softmax(1)
        clamped = coefficients.clamp(0, 1)
        merged = {
            name: start
            + sum(
                clamped[t, col] * (pool[n][name] - start) for t, n in enumerate(names)
            )
            for col, (name, start) in enumerate(base.items())
        }
        weight, bias = heads[task]
        logits = features(merged, rows) @ weight.t() + bias
        sure, label = teacher.max(1)
        own, predicted = logits.softmax(1).max(1)
        kept = torch.ones(8, dtype=torch.bool)
        if sampling == "confidence_gap":
            kept = (predicted == label) | (sure >= own)
        if sampling == "top_p":
            kept = sure >= sure.sort(descending=True).values[2]  # 3 of 8
        target = label if labels == "hard" else teacher
        loss = torch.nn.functional.cross_entropy(logits[kept], target[kept])
        assert watch.reports[step].loss[task] == pytest.approx(loss.item(), abs=1e-5)
        assert watch.reports[step].kept[task] == kept.sum()
        adam.zero_grad()
        loss.backward()
        for other in names:  # untouched ones must not move by momentum
            for p in heads[other] if other != task else ():
                p.grad = None
        adam.step()
    got = engine.coefficients.raw.detach()
    assert (got - 0.3).abs().max() > 0.03
    torch.testing.assert_close(got, coefficients.detach(), rtol=0, atol=1e-4)
    for task in names:
        torch.testing.assert_close(model.head(task).weight.data, heads[task][0].data,
                                   rtol=0, atol=1e-4)  # fmt: skip
        assert model.head(task).bias.abs().max() > 0.01


def adam_state(watch) -> dict:
    optimizer = watch.engine.optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        (i, name): value.clone()
        for i, p in enumerate(parameters)
        for name, value in optimizer.state.get(p, {}).items()
    }


@pytest.fixture
def keeps_nothing_of_bb(monkeypatch):
    """Teacher and merged model disagree on all of task bb's samples, it being surer."""
    plain = functional.confidence_gap_selection

    def select(logits, labels, confidence):
        kept = plain(logits, labels, confidence)
        return kept & (logits.shape[1] != TASKS["bb"])

    monkeypatch.setattr(functional, "confidence_gap_selection", select)


def test_a_step_that_keeps_nothing_changes_nothing(keeps_nothing_of_bb):
    seen = []
    algorithm = make(sampling="confidence_gap", rounds=5)
    model = tint_noting(algorithm, lambda w: seen.append(adam_state(w)))
    watch = algorithm.watch
    skipped = [s for s, r in enumerate(watch.reports) if "bb" in r.seen]
    assert len(skipped) == 5
    for step, report in enumerate(watch.reports):
        if step in skipped:
            assert watch.moved(step) == set()
            assert report.kept == {"bb": 0} and report.loss == {"bb": 0}
            before = seen[step - 1] if step else {}
            assert before.keys() == seen[step].keys()
            assert all(torch.equal(before[k], seen[step][k]) for k in before)
        else:
            assert watch.moved(step) >= {"coefficients"}
    assert all(torch.isfinite(v).all() for v in watch.states[-1].values())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert (
        algorithm.watch.learner.selection.kept["bb"]
        == 0
        < algorithm.watch.learner.selection.kept["aa"]
    )


def tint_noting(algorithm, note):
    """Run, and call `note` with the Watch after every step."""

    class Noting(Watch):
        def on_step(self, engine, report):
            super().on_step(engine, report)
            note(self)

    algorithm.watch = Noting(algorithm)
    return tint(algorithm)


def test_in_joint_steps_a_task_that_keeps_nothing_keeps_its_tint(monkeypatch):
    """Its first batches count; later Adam's momentum alone must not move its head."""
    plain, calls = functional.confidence_gap_selection, []

    def select(logits, labels, confidence):
        kept = plain(logits, labels, confidence)
        if logits.shape[1] != TASKS["bb"]:
            return kept
        calls.append(1)
        return kept if len(calls) <= 2 else torch.zeros_like(kept)

    monkeypatch.setattr(functional, "confidence_gap_selection", select)
    _, watch = watched(
        sampling="confidence_gap", schedule_kind="joint", rounds=5, batch_tasks=False
    )
    assert [r.kept["bb"] > 0 for r in watch.reports] == [True, True] + 3 * [False]
    assert "bb" in watch.moved(1)
    for step in (2, 3, 4):
        assert watch.moved(step) == {"coefficients", "aa", "cc"}


def test_a_task_that_keeps_nothing_for_long_is_named_once(keeps_nothing_of_bb, caplog):
    with caplog.at_level(logging.WARNING, "fusion_plugins"):
        watched(sampling="confidence_gap", rounds=45)
    (text,) = [m for m in caplog.messages if "has kept no sample" in m]
    assert "Task 'bb' has kept no sample in its last 20 batches" in text
    assert "use sampling=none" in text


# -- what is learned ------------------------------------------------------------------


def test_frozen_tints_leave_coefficients_alone_to_learn():
    model, watch = watched(learn_tints=False, rounds=5)
    assert all(watch.moved(step) == {"coefficients"} for step in range(15))
    for task, head in watch.algorithm.adapter.heads().items():
        assert torch.equal(model.head(task).weight, head.weight)
        assert (model.head(task).bias == 0).all()
    _, inner = watched(learn_tints=False, rounds=5, tint="projection")
    assert torch.equal(
        watch.states[-1]["coefficients"], inner.states[-1]["coefficients"]
    )


def test_frozen_coefficients_keep_their_bits():
    _, watch = watched(learn_coefficients=False, rounds=5, init=0.4)
    assert all(
        watch.moved(step) == set(report.seen)
        for step, report in enumerate(watch.reports)
    )
    assert (watch.states[-1]["coefficients"] == torch.tensor(0.4)).all()


def test_learning_rates_of_coefficients_and_tints_are_their_own():
    """Adam's first step is its learning rate, wherever the gradient is not tiny."""
    _, watch = watched(lr=1e-3, tint_lr=5e-2, rounds=1)
    task = next(iter(watch.reports[0].seen))
    change = {n: (watch.states[1][n] - watch.states[0][n]).abs().max().item()
              for n in watch.states[0]}  # fmt: skip
    assert change["coefficients"] == pytest.approx(1e-3, rel=1e-3)
    assert change[f"{task}/head/weight"] == pytest.approx(5e-2, rel=1e-3)
    _, shared = watched(lr=2e-3, rounds=1)
    moved = shared.states[1][f"{task}/head/bias"]
    assert moved.abs().max().item() == pytest.approx(2e-3, rel=1e-3)


def test_task_wise_coefficients_move_with_tints_too():
    _, watch = watched(granularity="task", rounds=3)
    assert watch.states[-1]["coefficients"].shape == (3,)
    assert "coefficients" in watch.moved(0)


# -- a tint inside the model ----------------------------------------------------------


@pytest.mark.parametrize("start", ["pretrained", "expert", "merged"])
def test_a_tinted_block_starts_from_exactly_these_weights(start):
    model, watch = watched(tint=BLOCK, tint_init=start, rounds=1)
    pool = {name: state_of(net) for name, net in toy_pool().items()}
    base = pool["_pretrained_"]
    merged = {n: base[n] + 0.3 * sum(pool[t][n] - base[n] for t in TASKS) for n in base}
    for task in TASKS:
        want = {"pretrained": base, "expert": pool[task], "merged": merged}[start]
        for key in INNER_KEYS:
            name = key.removeprefix(f"{BLOCK}.")
            got = watch.states[0][f"{task}/{BLOCK}/{name}"]
            # The expert is base + (expert - base): equal up to rounding.
            atol = 0 if start == "pretrained" else 3e-7
            torch.testing.assert_close(got, want[key], rtol=0, atol=atol)
    assert model.sites == (BLOCK,)


def test_gradients_of_a_tinted_block_are_there_and_in_the_coefficients_only():
    model, watch = watched(tint=BLOCK, rounds=5)
    keys = watch.engine.weights.keys
    columns = [keys.index(key) for key in INNER_KEYS]
    others = [c for c in range(len(keys)) if c not in columns]
    for step, report in enumerate(watch.reports):
        assert watch.moved(step) == {"coefficients", *report.seen}
    final = watch.states[-1]["coefficients"]
    assert (final[:, columns] == torch.tensor(0.3)).all()  # not merged: no gradient
    assert (final[:, others] != 0.3).all()
    for name, parameter in watch.tints(0).items():
        assert not torch.equal(parameter, watch.tints(-1)[name])
    for layer in watch.engine.weights._layers:
        assert layer.merged == (layer.key not in INNER_KEYS)
        assert layer.target.requires_grad or not layer.merged
    for task, head in watch.algorithm.adapter.heads().items():
        assert model.head(task) is None and head.bias is None


def test_the_result_of_a_tinted_block_is_the_merge_with_the_block_replaced():
    model, watch = watched(tint=BLOCK, rounds=4)
    pool = {name: state_of(net) for name, net in toy_pool().items()}
    base, applied = pool["_pretrained_"], watch.states[-1]["coefficients"].clamp(0, 1)
    rows = torch.stack(watch.algorithm.adapter.dataset("aa", "test"))
    outputs = []
    for task in TASKS:
        net = ToyNet()
        state = {
            n: base[n]
            + sum(applied[t, c] * (pool[o][n] - base[n]) for t, o in enumerate(TASKS))
            for c, n in enumerate(base)
        }
        for key in INNER_KEYS:
            name = key.removeprefix(f"{BLOCK}.")
            state[key] = watch.states[-1][f"{task}/{BLOCK}/{name}"]
        net.load_state_dict(state)
        model.set_task(task)
        with torch.no_grad():
            outputs.append(model(rows))
            torch.testing.assert_close(outputs[-1], net(rows), rtol=0, atol=1e-5)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_a_pattern_of_two_layers_and_a_list_of_places():
    model, watch = watched(tint="blocks.[02].mix", rounds=3)
    assert model.sites == ("blocks.0.mix", "blocks.2.mix")
    assert len(watch.tints(0)) == 3 * 2 * 2
    assert watch.moved(0) == {"coefficients", *watch.reports[0].seen}
    both, watch = watched(tint=["head", "blocks.0.norm", "projection"], rounds=3)
    assert set(both.sites) == {"head", "outer:projection", "blocks.0.norm"}
    assert len(watch.tints(0)) == 3 * (2 + 1 + 2)
    changed = [n for n, v in watch.tints(0).items() if not torch.equal(v, watch.tints(-1)[n])]  # fmt: skip
    assert len(changed) == 15


def test_an_outer_layer_is_learned_per_task():
    model, watch = watched(tint="projection", rounds=4)
    start = watch.states[0]["aa/outer:projection/weight"]
    for step, report in enumerate(watch.reports):
        assert watch.moved(step) == {"coefficients", *report.seen}
    layers = {task: model.outer_layers(task)["projection"].weight for task in TASKS}
    for task, weight in layers.items():
        assert torch.equal(watch.states[0][f"{task}/outer:projection/weight"], start)
        assert torch.equal(weight, watch.states[-1][f"{task}/outer:projection/weight"])
    assert not torch.equal(layers["aa"], layers["bb"])


# -- task vectors changed first -------------------------------------------------------


def test_teachers_are_the_whole_experts_whatever_is_merged():
    _, plain = watched(rounds=2)
    for options in ({"trim": 0.2}, {"disentangle": {"alpha": 1e-3}}, {"init": 0.0}):
        _, other = watched(rounds=2, **options)
        for task in TASKS:
            want, got = (w.learner.teachers[task] for w in (plain, other))
            assert torch.equal(want.labels, got.labels)
            torch.testing.assert_close(want.confidence, got.confidence)
        final = other.states[-1]["coefficients"]
        assert not torch.equal(final, plain.states[-1]["coefficients"])


def test_the_callers_models_stay_as_they_are():
    pool = toy_pool()
    before = {name: state_of(model) for name, model in pool.items()}
    tint(make(tint=["head", BLOCK]), pool)
    for name, model in pool.items():
        assert before[name].keys() == state_of(model).keys()
        for key, value in state_of(model).items():
            assert torch.equal(value, before[name][key])


# -- mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, text",
    [
        ({"tint_init": "zero"}, "tint_init is 'zero', expected one of .*'pretrained'"),
        ({"rounds": -1}, "rounds is -1, expected a whole number >= 0"),
        ({"rounds": 2.5}, "rounds is 2.5, expected a whole number"),
        ({"schedule_kind": "random"}, "schedule_kind is 'random', expected one of"),
        ({"labels": "true"}, "labels is 'true', expected one of .*'hard', 'soft'"),
        ({"sampling": "gap"}, "sampling is 'gap', expected one of .*'confidence_gap'"),
        ({"top_p": 0}, r"top_p is 0, expected a number in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p is 1.5, expected a number in \(0, 1\]"),
        ({"clamp": "yes"}, r"clamp is 'yes', expected one of \[True, False\]"),
        ({"learn_tints": None}, "learn_tints is None, expected one of"),
        ({"learn_coefficients": "no"}, "learn_coefficients is 'no', expected one of"),
        ({"preset": "fast", "tint": "blocks.1"}, "fast has a learning rate for heads"),
        ({"tint_lr": 0}, r"tint_lr is 0, expected a number in \(0, 1e[+]30\]"),
        ({"lr": -1.0}, r"lr is -1.0, expected a number"),
        ({"batch_size": 0}, "batch_size is 0, expected a whole number >= 1"),
        ({"tint": []}, r"tint is \[\], expected 'head', a module path"),
        ({"tint": None}, "tint is None, expected 'head', a module path"),
        ({"tint": ["head", 3]}, r"tint is \['head', 3\], expected 'head', a module"),
        (
            {"learn_tints": False, "learn_coefficients": False},
            "learn_coefficients and learn_tints are both false: nothing is learned",
        ),
        (
            {"coefficients": "coefficients.safetensors"},
            r"whose tints were learned too: use TintedModel.from_pretrained\(folder\)",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_each_bad_option_is_refused_by_name(options, text):
    with pytest.raises(ValueError, match=text):
        make(**options)


def test_misspelt_options_are_refused():
    with pytest.raises(
        TypeError, match="no option 'tint_int'.*Did you mean 'tint_init'"
    ):
        make(tint_int="merged")


def test_one_forward_for_all_tasks_is_refused_for_inner_tints():
    with pytest.raises(ValueError, match="each task has layers of its own inside"):
        watched(tint=BLOCK, schedule_kind="joint", batch_tasks=True)


def test_a_merged_start_is_of_the_trimmed_task_vectors():
    algorithm = make(tint=BLOCK, tint_init="merged", trim=0.2, rounds=1)
    tint(algorithm)
    pool = toy_pool()
    experts = {name: pool[name] for name in pool if name != "_pretrained_"}
    vectors = TaskVectors.from_modules(pool["_pretrained_"], experts)
    weights = MergedWeights(toy_pool()["_pretrained_"], vectors)
    ties_trim_(weights.stacks, 0.2)
    merged = weights.materialise(torch.full((len(experts), len(weights.keys)), 0.3))
    want = merged.get_submodule(BLOCK).state_dict()
    start = algorithm.watch.tints(0)
    for task in experts:
        for name, value in want.items():
            torch.testing.assert_close(start[f"{task}/{BLOCK}/{name}"], value)
