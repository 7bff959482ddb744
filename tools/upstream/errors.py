"""What an export refuses to do."""


class ExportError(ValueError):
    """An export that cannot be made; nothing has been written."""
