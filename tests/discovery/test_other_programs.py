"""Programs that do not use FusionBench do not notice that we are installed."""

import json
import sys
from pathlib import Path

import pytest
from start_program import start

pytestmark = pytest.mark.slow

APP = """
import json, sys
import hydra

@hydra.main(config_path=None, version_base=None)
def main(cfg):
    pass

main()
print(json.dumps(sorted(sys.modules)))
"""


def test_another_hydra_program_keeps_its_search_path(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    run = start([sys.executable, "app.py", "--info", "all"], tmp_path)
    assert run.returncode == 0, run.stderr
    *report, modules = run.stdout.strip().splitlines()
    providers = {line.split("|")[1].strip() for line in report if "://" in line}

    # Hydra knows the plugin, so an absent provider is the plugin's own doing.
    assert any(line.strip() == "FusionPluginsSearchPath" for line in report)
    assert providers == {"hydra", "schema"}
    assert "hydra_plugins.fusion_plugins_searchpath" in json.loads(modules)
    assert not {"fusion_plugins", "fusion_bench", "torch"} & set(json.loads(modules))


@pytest.mark.parametrize(
    "module", ["fusion_plugins", "hydra_plugins.fusion_plugins_searchpath"]
)
def test_importing_it_does_not_import_torch(tmp_path: Path, module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    run = start([sys.executable, "-c", code], tmp_path)
    assert run.returncode == 0, run.stderr
    loaded = set(json.loads(run.stdout))
    assert module in loaded
    assert not {"torch", "fusion_bench", "transformers", "lightning"} & loaded


IMPORTED = """
import json, sys
from fusion_bench import BaseAlgorithm, BaseModelPool
from fusion_bench.mixins import LightningFabricMixin, SimpleProfilerMixin
theirs = set(sys.modules)
from fusion_plugins import AWDAlgorithm
print(json.dumps(sorted({n.partition(".")[0] for n in set(sys.modules) - theirs})))
"""


def test_awd_waits_for_no_large_library_that_its_base_classes_do_without(
    tmp_path: Path,
) -> None:
    run = start([sys.executable, "-c", IMPORTED], tmp_path)
    assert run.returncode == 0, run.stderr
    loaded = set(json.loads(run.stdout)) - sys.stdlib_module_names
    assert "fusion_plugins" in loaded
    assert not {"datasets", "peft", "pandas", "torchvision"} & loaded
