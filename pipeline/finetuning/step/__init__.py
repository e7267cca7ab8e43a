"""One optimizer step: the model in DeepSpeed and its settings, the loss, the learning rate."""
