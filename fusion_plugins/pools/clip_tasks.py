"""Register own zero-shot classification tasks with FusionBench."""

from collections.abc import Callable, Sequence

from fusion_bench.tasks.clip_classification import CLIPTemplateFactory

from ..common.logging import get_logger

log = get_logger(__name__)


class PromptTemplate:
    """A prompt with one `{}` as the callable FusionBench expects; equal by its text."""

    def __init__(self, text: str):
        if not isinstance(text, str) or text.count("{}") != 1:
            raise ValueError(
                f"template {text!r} needs exactly one '{{}}' where the class name goes,"
                " for example 'a photo of a {}.'"
            )
        self.text = text

    def __call__(self, class_name: str) -> str:
        return self.text.replace("{}", class_name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptTemplate) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"PromptTemplate({self.text!r})"


def _checked_class_names(name: str, class_names: Sequence[str]) -> list[str]:
    if isinstance(class_names, str):
        raise ValueError(
            f"task {name!r}: class names are the single string {class_names!r};"
            " give a list of strings"
        )
    names = list(class_names)
    if not names:
        raise ValueError(f"task {name!r}: the list of class names is empty")
    bad = [c for c in names if not isinstance(c, str) or not c.strip()]
    if bad:
        raise ValueError(
            f"task {name!r}: class names must be non-empty text, got {bad}"
        )
    repeated = sorted({c for c in names if names.count(c) > 1})
    if repeated:
        raise ValueError(f"task {name!r}: class names repeat: {repeated}")
    return names


def _checked_templates(name: str, templates: Sequence[str]) -> list[PromptTemplate]:
    if isinstance(templates, str):
        raise ValueError(
            f"task {name!r}: templates are the single string {templates!r};"
            " give a list of strings"
        )
    if not templates:
        raise ValueError(f"task {name!r}: the list of templates is empty")
    return [PromptTemplate(text) for text in templates]


def register_clip_task(
    name: str, classnames: Sequence[str], templates: Sequence[str]
) -> None:
    """Make `name` a zero-shot task that FusionBench's CLIP pools can evaluate.

    Registering the same content again does nothing; other content replaces it, also
    that of a task FusionBench ships.

    Args:
        name: Task name, as used for the pool's models and data sets.
        classnames: One name per class; position = label. No repeats.
        templates: Prompts with one `{}` each, for example "a photo of a {}.".

    Raises:
        ValueError: Empty name, empty or repeated class names, or a template without
            exactly one `{}`.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"a task needs a non-empty name, got {name!r}")
    info: dict[str, list[str] | list[Callable[[str], str]]] = {
        "classnames": _checked_class_names(name, classnames),
        "templates": _checked_templates(name, templates),
    }
    known = CLIPTemplateFactory._dataset_mapping
    if known.get(name) == info:
        return
    if known.pop(name, None) is not None:  # a name still there makes upstream warn
        log.info(f"Zero-shot task {name!r} gets new class names or templates.")
    # FusionBench 0.2.33 stores templates under a misspelt key unless it is given all
    # three arguments.
    CLIPTemplateFactory.register_dataset(name, dataset_info=info, **info)
