"""What engines share that run a model's networks as graphs in another program than torch."""
