"""Training of CUE: data, losses, metrics, trainer. Nothing of this folder travels with a checkpoint."""
