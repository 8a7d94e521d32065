"""Where fewstep meets diffusers: its pipelines made few-step ones, and models written for them."""
