"""Settings shared by the tests of this folder."""

import torch

# Thousands of tiny operations: threads only get in each other's way.
torch.set_num_threads(1)
