"""Which learning rate: a range test, and constant rates around the point of divergence."""
