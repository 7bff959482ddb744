"""Tinted models on the Hugging Face hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def fetched(source: str | Path) -> Path:
    """A model's folder; what is none but has the form ``user/name`` is downloaded."""
    folder = Path(source)
    # A folder that is being replaced is absent for a moment, its parent is not.
    if folder.is_dir() or folder.parent.is_dir() or str(source).count("/") != 1:
        return folder
    try:
        validate_repo_id(str(source))
    except HFValidationError:
        return folder
    return Path(huggingface_hub.snapshot_download(str(source)))


def upload(save: Callable[[str], None], name: str, **options: Any) -> str:
    """Upload what `save` writes into a folder.

    Args:
        save: Called with a temporary folder.
        name: ``user/name``; made if it does not exist.
        **options: ``private`` for a new one; ``token``.

    Returns:
        Its address.
    """
    api = huggingface_hub.HfApi(token=options.pop("token", None))
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        address = api.create_repo(name, exist_ok=True, **options)
        api.upload_folder(repo_id=name, folder_path=folder)
    return str(address)
