"""Loading a model of a family, and running its network."""

import logging

# diffusers imports bitsandbytes where it is installed, which warns of a 4-bit kernel that fewstep does not use
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
