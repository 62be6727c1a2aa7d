"""Which call is mine: an update is run on chosen gradients, and compared with the optimizers."""
