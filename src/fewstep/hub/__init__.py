"""Models and LoRAs of the Hugging Face hub, by alias or id, as files on this machine."""

from fewstep.hub.licences import licence_of, title_of
from fewstep.hub.names import ALIASES, hub_name, not_found
from fewstep.hub.resolve import on_this_machine, resolved

__all__ = ["ALIASES", "hub_name", "licence_of", "not_found", "on_this_machine", "resolved", "title_of"]
