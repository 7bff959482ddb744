"""Names that the running and the gathering side share."""

PRETRAINED, EXPERTS = "pretrained", "experts"
# Rows that no method makes: the base, and every expert on its own task.
REFERENCES = (PRETRAINED, EXPERTS)
