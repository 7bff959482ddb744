"""Demo pools whose build is killed again and again; for test_build."""

from pathlib import Path

from forked import finished, fork, kill_often

from fusion_plugins.demo import DemoRecipe, build, ensure_pool

RECIPE = DemoRecipe(
    tasks=("textures", "counting"),
    width=16,
    depth=1,
    heads=2,
    text_width=16,
    text_depth=1,
    embedding=16,
    train_images=20,
    test_images=10,
    pretrain_steps=2,
    expert_steps=2,
    batch_size=4,
)


def files(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "pool.json"  # that one holds the duration
    }


def run(folder: Path) -> None:
    ensure_pool(RECIPE, folder / "pool")


def differences(folder: Path, unbroken: Path) -> list[str]:
    ours, whole = files(folder / "pool"), files(unbroken / "pool")
    left = [path.name for path in folder.glob(".pool.building-*")]
    return left + [name for name in whole if ours.get(name) != whole[name]]


def kill(folder: Path) -> list[dict]:
    return kill_often(run, folder, differences)


def build_twice_at_once(folder: Path) -> None:
    """Two processes build one pool; each leaves a file if it was the one that built."""
    assert all(map(finished, [fork(_build, folder, n) for n in ("one", "other")]))


def _build(folder: Path, name: str) -> None:
    write = build._write_pool

    def told(*arguments):
        (folder / name).touch()
        return write(*arguments)

    build._write_pool = told
    ensure_pool(RECIPE, folder / "pool")
