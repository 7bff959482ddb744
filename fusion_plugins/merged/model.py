"""The tinted model: one merged trunk and a small task-specific layer per task.

It also holds merged models whose tasks keep their experts' own, unlearned heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ..common.upstream import active_option_of, option_name
from . import files, replacing, sites
from .heads import SurgeryHook
from .sites import Site, TaskSwitch


class TintedModel(SurgeryHook, nn.Module):
    """A merged trunk whose tinted layer is chosen by the task.

    Args:
        trunk: The merged model as a plain module, without any task-specific layer.
        tints: Site -> task -> layer. Sites are ``head``, module paths of the trunk, or
            ``outer:NAME`` for a layer that the pool applies after the trunk.
        reference: Task -> the frozen head that training started from, for a head tint.

    Raises:
        ValueError: There are no tints, not all of the same tasks, or not of the trunk.

    Attributes:
        trunk: The trunk, with FusionBench's SwitchModules at its tinted places.
        tasks: Task names.
        card: Markdown for the saved folder's README.md; a short one is made without.
    """

    def __init__(
        self,
        trunk: nn.Module,
        tints: Mapping[Any, Mapping[str, nn.Module]],
        reference: Mapping[str, Tensor] | None = None,
    ):
        super().__init__()
        if not tints:
            raise ValueError(f"tints is {tints!r}, expected layers by site and task.")
        self.tasks = tuple(next(iter(tints.values())))
        sites.check_task_names(self.tasks)
        self.sites: tuple[Site, ...] = ()
        self.trunk = trunk
        self.switches = nn.ModuleList()
        self._plain: dict[Site, tuple[nn.Module]] = {}
        for site, layers in tints.items():
            self.add_site(site, layers)
        self._reference = dict(reference or {})
        self._maps = {}
        self.card: str | None = None

    def add_site(self, site: str, layers: Mapping[str, nn.Module]) -> None:
        """Let one more layer differ between the tasks.

        Args:
            site: As in the constructor.
            layers: Task -> layer, for every task.

        Raises:
            ValueError: A task has no layer, or the trunk no such site.
        """
        site = Site.on(self.trunk, site)
        lacking = [task for task in self.tasks if task not in layers]
        if lacking:
            raise ValueError(
                f"the layers at '{site}' lack those of the tasks {lacking}."
            )
        if site.in_trunk and site not in dict(self.trunk.named_modules()):
            kind = type(self.trunk).__name__
            raise ValueError(f"there is no layer '{site}' in the {kind} to tint.")
        switch = TaskSwitch({task: layers[task] for task in self.tasks}, site)
        if site.in_trunk:  # a plain tuple keeps the plain layer out of the state dict
            self._plain[site] = (self.trunk.get_submodule(site),)
            sites.replace(self.trunk, site, switch)
        self.switches.append(switch)
        self.sites += (site,)

    @property
    def active_task(self) -> str | None:
        """The task whose layers are in use; also FusionBench's pools may set it."""
        active = active_option_of(self.switches[0])
        names = {option_name(task): task for task in self.tasks}
        return None if active is None else names.get(active)

    def set_task(self, task: str | None) -> None:
        """Choose the task; None (its state at first) allows only a head tint.

        Raises:
            ValueError: There is no tint for this task.
        """
        if task is not None and task not in self.tasks:
            raise ValueError(
                f"there is no tint for task '{task}', only for {list(self.tasks)}."
            )
        for switch in cast(Iterable[TaskSwitch], self.switches):
            switch.set_active_option(task)

    @contextmanager
    def for_task(self, task: str) -> Iterator[None]:
        """The task is set for a while, and none afterwards."""
        self.set_task(task)
        try:
            yield
        finally:
            self.set_task(None)

    @property
    def needs_task(self) -> bool:
        """Whether a layer of the trunk is tinted, so that no task means no forward."""
        return any(site.in_trunk for site in self.sites)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The trunk's own output for the active task.

        Raises:
            RuntimeError: A layer of the trunk is tinted and no task is set.
        """
        return self.trunk(*args, **kwargs)

    def head(self, task: str) -> Any:
        """The tinted head of a task: unit features -> logits; None without a head tint."""
        if sites.HEAD not in self.sites or task not in self.tasks:
            return None
        return sites.option(self.switches[self.sites.index(sites.HEAD)], task)

    def outer_layers(self, task: str) -> dict[str, nn.Module]:
        """Tinted layers that the pool applies after the trunk, by their name there."""
        return {
            site.layer: sites.option(switch, task)
            for site, switch in zip(self.sites, self.switches, strict=True)
            if site.is_outer
        }

    # -- numbers and files ----------------------------------------------------------

    def parameter_report(self) -> dict[str, Any]:
        """Parameters per task, of all tints, of the trunk, and their share in percent."""
        per_task = {
            task: _parameters(sites.option(switch, task) for switch in self.switches)
            for task in self.tasks
        }
        tints = _parameters(self.switches)
        with self._without_switches():
            trunk = _parameters([self.trunk])
        shares = {"tints": tints, "trunk": trunk, "percent": 100 * tints / trunk}
        return {"per_task": per_task, **shares}

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write the trunk into ``trunk/``, one file per task, index and card.

        ``trunk/`` is a normal model folder: the merged model without any tint; where
        inner layers are tinted, it holds their merge with the coefficients' start values.
        ValueError if a layer could not be loaded again.

        Args:
            folder: Created if absent.
            **kwargs: For the trunk's own save_pretrained, if it has one.
        """
        with replacing.written_beside(Path(folder)) as beside:
            with self._without_switches():
                files.check_layers(self.trunk, self.sites, self.switches)
                files.save_trunk(self.trunk, beside, **kwargs)
            tints = {task: self._task_tensors(task) for task in self.tasks}
            files.save_tints(beside, self.sites, tints, self.parameter_report())
            (beside / "README.md").write_text(self.card or self._short_card())

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Upload what :meth:`save_pretrained` writes to ``user/name``; see `upload`."""
        return replacing.upload(self.save_pretrained, name, **options)

    def _without_switches(self) -> AbstractContextManager[None]:
        plain: dict[str, nn.Module] = {s: layer for s, (layer,) in self._plain.items()}
        return sites.replaced(self.trunk, plain)

    def _short_card(self) -> str:
        report = self.parameter_report()
        return (
            f"# Tinted model of {', '.join(self.tasks)}\n\nA merged trunk in `trunk/` (an"
            f" ordinary model folder) and, in `tints/`, one layer per task at"
            f" {', '.join(self.sites)}: {report['tints']} parameters,"
            f" {report['percent']:.2f} % of the trunk.\n\n```python\nfrom"
            f" {__name__} import TintedModel\n\nmodel = TintedModel.from_pretrained(folder)\n"
            f'model.set_task("{self.tasks[0]}")\n```\n'
        )

    def _task_tensors(self, task: str) -> dict[str, Tensor]:
        tensors = {}
        for site, switch in zip(self.sites, self.switches, strict=True):
            for name, value in sites.option(switch, task).state_dict().items():
                tensors[f"{site}/{name}"] = value.detach().cpu().contiguous()
        if task in self._reference:
            tensors["reference"] = self._reference[task].detach().cpu().contiguous()
        return tensors

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        tasks: Sequence[str] | None = None,
        trunk: nn.Module | None = None,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> TintedModel:
        """Read what :meth:`save_pretrained` wrote.

        Args:
            folder: The model's folder, or ``user/name`` on the hub.
            tasks: Load only these tasks' tints; all by default.
            trunk: A module of the trunk's architecture, to copy and fill; needed for
                those that transformers cannot build, such as torchvision's.
            heads: Task -> a module to copy and fill; needed for tinted heads that are
                not linear, such as the decoders of dense tasks.

        Raises:
            ValueError: Not such a folder, it has no tint for a task, a file of one is
                missing or damaged, or `trunk` is needed or does not fit.
        """
        folder = replacing.whole_folder(replacing.fetched(folder))
        index = files.read_index(folder)
        tasks = list(index["tasks"]) if tasks is None else list(tasks)
        missing = [task for task in tasks if task not in index["tasks"]]
        if missing or not tasks:
            raise ValueError(
                f"{folder} has no tint for {missing}; it has {index['tasks']}."
            )
        trunk = files.load_trunk(folder, index, trunk)
        places = map(Site, index["sites"])
        tints: dict[str, dict[str, nn.Module]] = {site: {} for site in places}
        reference = {}
        for task in tasks:
            tensors = files.read_tint(folder, task, index["sites"])
            if "reference" in tensors:
                reference[task] = tensors.pop("reference")
            for site in tints:
                state = files.site_state(tensors, site)
                head = (heads or {}).get(task)
                own = Site.on(trunk, site)
                tints[site][task] = files.layer_of(trunk, own, state, head, task)
        return cls(trunk, tints, reference)


def _parameters(modules: Iterable[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())
