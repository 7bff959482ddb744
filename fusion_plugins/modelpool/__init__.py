"""Model pool classes: plain folders, image classifiers, OpenCLIP."""
