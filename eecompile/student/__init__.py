"""Students: checkpoints, model families, exits, and the weights on disk."""
