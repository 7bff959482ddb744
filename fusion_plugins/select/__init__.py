"""Selection of any method's options without labels."""
