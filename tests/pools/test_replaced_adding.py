"""Methods may add models to a view of a pool; the pool itself stays as it is."""

from torch import nn

from fusion_plugins.pools.replaced import with_experts


def test_added_models_are_found_in_the_view_alone(tiny_modelpool):
    before = list(tiny_modelpool._models)
    view = with_experts(tiny_modelpool, lambda name: nn.Identity())
    added = nn.Linear(2, 2)
    view.add_model("_merged_", added)
    assert view.load_model("_merged_") is added
    assert isinstance(view.load_model("digits"), nn.Identity)
    assert list(tiny_modelpool._models) == before
