"""A tiny OpenCLIP pool, made once, and no way to download another."""

import pytest


@pytest.fixture(scope="session")
def clip_root(tmp_path_factory):
    """A CLIP demo pool of two tasks, trained for a moment; do not write into it."""
    from fusion_plugins.demo import ensure_pool
    from fusion_plugins.demo.recipe import DemoRecipe

    recipe = DemoRecipe(
        tasks=("textures", "colours"),
        width=32,
        depth=2,
        text_width=32,
        text_depth=1,
        embedding=32,
        train_images=200,
        test_images=60,
        pretrain_images=100,
        pretrain_noise=0.1,
        pretrain_negatives=0.0,
        pretrain_steps=20,
        expert_steps=15,
        batch_size=32,
        pretrain_lr=2e-3,
        expert_lr=1.5e-3,
    )
    return ensure_pool(recipe, tmp_path_factory.mktemp("openclip") / "clip")


@pytest.fixture(scope="session")
def openclip_root(clip_root):
    """The same pool as OpenCLIP models; do not write into it."""
    from fusion_plugins.demo.openclip_build import export_pool

    return export_pool(clip_root, clip_root.with_name("openclip"))


@pytest.fixture
def pool(openclip_root):
    """Our model pool over `openclip_root`."""
    from fusion_plugins.demo import demo_openclip_modelpool

    return demo_openclip_modelpool(openclip_root)


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch):
    """Whatever would fetch weights fails."""
    import open_clip
    import open_clip.factory

    def refuse(*args, **kwargs):
        raise AssertionError("a test tried to download weights")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", refuse)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", refuse)
