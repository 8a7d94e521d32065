"""Image sources, and the cache of their latents and text embeddings."""
