"""The session: a model on an engine with LoRAs plugged in. It is opened once and draws many times."""

from fewstep.session.drawing import Picture
from fewstep.session.plan import Plan
from fewstep.session.recipe import PictureRecipe
from fewstep.session.session import Session

__all__ = ["Picture", "PictureRecipe", "Plan", "Session"]
