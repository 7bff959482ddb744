"""Names for settings that are the same in every process and on every machine."""

from __future__ import annotations

import hashlib
import json


def settings_hash(settings: object, digits: int = 64) -> str:
    """A short name for plain values.

    Args:
        settings: Lists, mappings, numbers, text; anything else counts by its text.
        digits: Hexadecimal digits to keep, 64 at most.
    """
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
