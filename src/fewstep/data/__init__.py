"""Sources of captioned images, and the cache of their latents and text embeddings."""
