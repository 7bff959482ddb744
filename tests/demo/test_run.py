import pytest
import torch

from fusion_plugins.compare.methods import read_methods
from fusion_plugins.demo.image_build import one_thread
from fusion_plugins.demo.run import METHODS, summary

REFERENCES = {"pretrained": 50.04, "experts": 95.0}


@pytest.mark.parametrize(
    ("averages", "text"),
    [
        (
            REFERENCES | {"awd": 61.25, "simple_average": 60.0, "tinting_pp": 80.0},
            "tinting_pp merges best: 80.0 on average, against the pretrained model's 50.0"
            " and the experts' 95.0.",
        ),
        (
            REFERENCES | {"simple_average": 60.0, "awd": 59.0, "adamerging": 20.0},
            "simple_average merges best: 60.0 on average, against the pretrained model's"
            " 50.0 and the experts' 95.0; worse than simple_average (60.0): awd (59.0),"
            " adamerging (20.0).",
        ),
        ({"awd": 59.0}, "awd merges best: 59.0 on average."),
        (REFERENCES, "No merged model was measured."),
    ],
)
def test_the_sentence_names_the_best_and_those_that_lose(averages, text):
    assert summary(averages) == text


def test_the_methods_are_those_of_the_compare_program():
    labels = [method.label for method in read_methods(list(METHODS))]
    assert labels[:2] == ["pretrained", "experts"] and len(labels) == 7
    assert labels[-1] == "tinting_pp (preset=fast)"


def test_one_thread_for_as_long_as_asked():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), one_thread() as threads:
            assert (threads, torch.get_num_threads()) == (2, 1)
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
