"""The acceleration vector as a value: low-rank updates, their arithmetic, files and layers."""
