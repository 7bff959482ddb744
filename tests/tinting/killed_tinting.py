"""Model Tinting on a toy pool, killed again and again; for test_tinting_killed."""

from pathlib import Path
from types import SimpleNamespace

import torch
from forked import kill_often
from lightning import Fabric
from safetensors.torch import load_file
from toy_tinting import ToyAdapter, ToyNet, make, toy_pool

from fusion_plugins import TintedModel
from fusion_plugins.learned import results
from fusion_plugins.pools import as_modelpool

# The order of a safetensors file's header is not fixed, so its numbers are compared.
FILES = {
    "coefficients.safetensors": lambda p: load_file(p)["raw"].tolist(),
    "coefficients.json": Path.read_bytes,
}


def run(folder: Path) -> None:
    """Writes `log/`, `model/`, and its numbers as `ended.pt`."""
    method = make(
        rounds=4,
        checkpoint_every=2,
        checkpoint_dir=str(folder / "kept"),
        guard_every=5,
    )
    method.fabric = Fabric(accelerator="cpu", devices=1)
    method._program = SimpleNamespace(path={"log_dir": str(folder / "log")})
    pool = as_modelpool(toy_pool())
    model = method.run(pool, ToyAdapter(pool))
    model.save_pretrained(folder / "model")
    losses = [entry["loss"] for entry in method.history]
    guard = method.guard_history
    numbers = {"model": model.state_dict(), "losses": losses, "guard": guard}
    torch.save(numbers, folder / "ended.pt")


def differences(folder: Path, unbroken: Path) -> list[str]:
    """What is not bit for bit as in the unbroken run."""
    one, other = (torch.load(f / "ended.pt") for f in (folder, unbroken))
    found = [n for n in ("losses", "guard") if one[n] != other[n]]
    found += [
        n for n, v in other["model"].items() if not torch.equal(one["model"][n], v)
    ]
    for name, read in FILES.items():
        same = read(folder / "log" / name) == read(unbroken / "log" / name)
        found += [] if same else [name]
    saved = TintedModel.from_pretrained(folder / "model", trunk=ToyNet()).state_dict()
    whole = TintedModel.from_pretrained(unbroken / "model", trunk=ToyNet()).state_dict()
    found += [f"model/{n}" for n, v in whole.items() if not torch.equal(saved[n], v)]
    return found + [p.name for p in (folder / "kept").glob("*/step_*")]


def kill(folder: Path) -> list[dict]:
    # Pictures take most of the time, and hold nothing that is not in the other files.
    results.save_pictures = lambda *_: []
    return kill_often(run, folder, differences)
