"""What every room uses: options, logging, sample order, and the bridge to FusionBench."""
