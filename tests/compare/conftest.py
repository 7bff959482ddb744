"""For all tests of comparisons."""

import pytest

DRAWING = ("awd.report", "learned.results", "selection.response")


@pytest.fixture(scope="module", autouse=True)
def no_pictures_of_methods():
    """Drawing them takes most of a short run, and tests of the methods look at them."""
    with pytest.MonkeyPatch.context() as patch:
        for module in DRAWING:
            patch.setattr(f"fusion_plugins.{module}.save_pictures", lambda *_: [])
        yield
