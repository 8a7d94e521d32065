"""Loading a model of a family, and running its network."""
