"""What a training run is measured by, on held-out texts: losses, calls, and which checkpoint is the best."""
