"""Losses, methods and the one training loop."""
