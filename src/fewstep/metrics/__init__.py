"""Numbers from pictures: distances, distributions, agreement, scores, and the networks that they need."""
