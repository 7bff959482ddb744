"""What works, and what is said, where no optional package is installed; prints JSON."""

import importlib.metadata
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

# Module -> its distribution, by which some libraries look for it.
HIDDEN = {
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "open_clip": "open_clip_torch",
    "sklearn": "scikit-learn",
    "torchvision": "torchvision",
}


def hide() -> None:
    """Let this process find none of these packages."""
    find = importlib.metadata.Distribution.from_name

    def found(name: str) -> importlib.metadata.Distribution:
        if name.lower().replace("_", "-") in {
            d.replace("_", "-") for d in HIDDEN.values()
        }:
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    importlib.metadata.Distribution.from_name = staticmethod(found)
    sys.modules.update(dict.fromkeys(HIDDEN))


def error_of(run: Callable) -> str:
    try:
        run()
    except ImportError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def clip_folders(folder: Path) -> dict[str, str]:
    """A tiny CLIP vision model and two experts, as folders."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    model, paths = CLIPVisionModel(CLIPVisionConfig(**sizes)), {}
    for name in ("_pretrained_", "one", "two"):
        model.save_pretrained(paths.setdefault(name, str(folder / name)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return paths


def merged(folder: Path) -> list[str]:
    """Merge CLIP folders with AWD; the files in its log folder come back."""
    from fusion_bench.modelpool import CLIPVisionModelPool
    from lightning import Fabric
    from lightning.fabric.loggers import CSVLogger

    from fusion_plugins import AWDAlgorithm

    logs = folder / "logs"
    method = AWDAlgorithm(iterations=3, alpha=1e-3)
    method.fabric = Fabric(
        accelerator="cpu", loggers=CSVLogger(logs, name="", version="")
    )
    model = method.run(CLIPVisionModelPool(clip_folders(folder)))
    assert type(model).__name__.startswith("CLIPVision"), type(model)
    return sorted(path.name for path in logs.iterdir() if path.name[0] != ".")


def main(folder: Path) -> None:
    hide()
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("fusion_plugins").addHandler(handler)
    import fusion_plugins

    files = merged(folder)
    from fusion_plugins.compare.gathering import gather
    from fusion_plugins.compare.program import CompareProgram
    from fusion_plugins.compare.sweep import plot_sweep
    from fusion_plugins.demo import DemoRecipe, builtin_tasks

    program = CompareProgram({}, {}, methods=["awd"])
    resnets = fusion_plugins.ResNetPool({"a": {}}, type="torchvision")
    errors = {
        name: error_of(lambda name=name: getattr(fusion_plugins, name))
        for name in fusion_plugins.__all__
    } | {
        "compare": error_of(program.plan),
        "gather": error_of(lambda: gather(folder)),
        "sweep": error_of(lambda: plot_sweep(folder, "alpha")),
        "digits": error_of(lambda: builtin_tasks(DemoRecipe(tasks=("digits",)))),
        "resnet": error_of(lambda: resnets.load_model("a")),
    }
    said = {"files": files, "warnings": warnings, "errors": errors}
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
