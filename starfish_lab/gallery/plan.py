"""What a job does that shows one picture to the networks of a run. Imports no torch."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from starfish_lab import checks
from starfish_lab.errors import RecipeError
from starfish_lab.recipe import Recipe, RecipePlan

MOST_BYTES = 2**20  # of a picture, before base64: a row stays small


@dataclass(frozen=True, kw_only=True)
class PicturePlan(RecipePlan):
    """A picture for the dense, the pruned and the healed network of a run. The picture lies in the plan, and goes where it goes.

    recipe : of the run
    run : its number
    artefact : folder or address of the network that it saved
    file : what the person calls the picture
    picture : the file, base64
    """

    KEY = "starfish_lab_picture"
    WHAT = "picture plan"

    recipe: Recipe = Recipe()
    run: int = 0
    artefact: str = ""
    file: str = ""
    picture: str = ""

    def __post_init__(self) -> None:
        checks.whole("run", self.run, 0)
        if not 0 < len(self.content) <= MOST_BYTES:
            raise RecipeError(f"The picture has {len(self.content):,} bytes; expected were 1 to {MOST_BYTES:,}. Make it smaller.")

    @property
    def name(self) -> str:
        """The picture's: what a list of runs shows."""
        return self.file

    @property
    def content(self) -> bytes:
        """The picture's file."""
        try:
            return base64.b64decode(self.picture, validate=True)
        except binascii.Error:
            raise RecipeError("The picture is no base64 text. Encode the file's bytes.") from None
