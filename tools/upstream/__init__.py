"""Lays a method out as files of a FusionBench checkout: copies, and two lists.

Needs a source checkout of this project, with black and isort (extra `dev`).
"""
