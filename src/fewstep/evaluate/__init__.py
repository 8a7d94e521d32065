"""How good and how fast images are: distances, distributions, agreement, latency, reports."""
