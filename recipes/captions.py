"""The prompts `general` that ship: 1,000 plain captions of everyday pictures, put together from lists of words.

    python -m recipes.captions

`fewstep distill --synthetic` draws what a model learns from after them. Each category has as many captions. Half of all
captions name a way to make the picture, such as an oil painting; a third name a light, a colour or a view.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fewstep.assets import CHECKSUMS, FOLDER, PROMPTS, checksums
from fewstep.cli import main_of
from fewstep.configs import Config
from fewstep.io import write_bytes, write_json

COUNT = 1000


class GeneralCaptionsConfig(Config):
    """Write the general captions where fewstep ships them."""

    out: Path = FOLDER
    """The package's folder of assets."""


class Category(NamedTuple):
    """Words for one kind of picture: a caption takes one of each list."""

    subjects: Sequence[str]
    doings: Sequence[str]  # what the subject does, or has; "" is nothing
    places: Sequence[str]  # "" is nowhere in particular


def words(text: str) -> list[str]:
    """The parts of a text between commas; an empty part stays."""
    return [" ".join(part.split()) for part in text.split(",")]


CATEGORIES = (
    Category(
        words(
            """
            an old man, a young woman, a little girl, a boy with freckles, a fisherman, a ballet dancer, a
            firefighter, a woman in a red coat, a man with a grey beard, a nurse, a chef, a guitarist, two friends,
            a grandmother, a farmer, a teacher, a man in a suit, a bride, a painter, a woman with curly hair, a
            student, an astronaut
            """
        ),
        words(
            """
            smiling, reading a book, looking out of a window, drinking coffee, laughing, holding an umbrella, ,
            walking, playing the violin, carrying a basket of apples, talking on the phone, with closed eyes,
            waving, writing
            """
        ),
        words(
            """
            in a park, on a busy street, in a kitchen, by the sea, , at a train station, in a garden, under a tree,
            in the rain, at a market, in front of a brick wall, in a library, on a bench, in the snow
            """
        ),
    ),
    Category(
        words(
            """
            a cat, a golden retriever, a red fox, a horse, an owl, an elephant, a tiger, a parrot, a rabbit, a
            hedgehog, a deer, two penguins, a brown bear, a butterfly, a goldfish, a frog, a cow, a black dog, a
            squirrel, a lion, a polar bear, a turtle, a swan, a kitten, a puppy, a giraffe, a bee, a crab, an eagle,
            a sheep
            """
        ),
        words(
            """
            sleeping, running, looking at the camera, eating, , jumping, drinking water, sitting, playing with a
            ball, with its young, yawning, hiding, standing still
            """
        ),
        words(
            """
            in tall grass, in a forest, on a beach, on a sofa, , in the snow, near a river, on a rock, in a field of
            flowers, on a farm, in the desert, behind a fence, under water, on a branch
            """
        ),
    ),
    Category(
        words(
            """
            a mountain lake, a desert, a waterfall, a forest path, a rocky coast, rolling hills, a frozen river, a
            canyon, a tropical island, a field of sunflowers, a volcano, a meadow, a glacier, a swamp, cliffs by the
            sea, a valley, a birch forest, a vineyard, sand dunes, a coral reef, a country road, a bamboo forest
            """
        ),
        words(
            """
            , with a small cabin, under a stormy sky, with birds in the sky, covered with mist, full of wild
            flowers, with a wooden bridge, after the rain, with a lone tree, with snow on the ground, under the
            stars
            """
        ),
        words(
            """
            at sunrise, at sunset, in autumn, in winter, , in spring, at night, on a clear day, at noon, in the fog,
            in summer, by moonlight
            """
        ),
    ),
    Category(
        words(
            """
            a bowl of soup, a slice of cake, a pizza, fresh bread, a cup of tea, a plate of pasta, a hamburger,
            strawberries, a glass of orange juice, sushi, a roast chicken, pancakes, an ice cream cone, vegetables,
            a bowl of rice, a cheese board, a salad, cookies, a birthday cake, lemons, a fish dish, grapes, a
            sandwich
            """
        ),
        words(
            """
            , with steam rising, cut in half, with a fork beside, on a white plate, with mint leaves, in a basket,
            with berries, half eaten, in a paper bag, with a candle
            """
        ),
        words(
            """
            on a wooden table, in a restaurant, on a picnic blanket, on a kitchen counter, , at a street stall, on a
            marble surface, by a window, on a dark background, on a checked tablecloth
            """
        ),
    ),
    Category(
        words(
            """
            a church, a lighthouse, a skyscraper, a stone bridge, a wooden hut, a castle, a train station, a mosque,
            a row of colourful houses, a windmill, a factory, a temple, a market hall, a barn, a museum, a stadium,
            a village, a shop with a striped awning, a ruined tower, a greenhouse, a glass office building, a
            harbour
            """
        ),
        words(
            """
            , with people in front, covered with ivy, with lit windows, seen from above, with a red door, with a
            clock, under construction, with a flag, with reflections in a puddle, with bicycles outside
            """
        ),
        words(
            """
            on a hill, in the city, by a canal, in the fog, , at night, in a narrow street, on an island, in the
            mountains, under a blue sky, in the rain, at dusk, in a snowy field
            """
        ),
    ),
    Category(
        words(
            """
            a red bicycle, a sailing boat, a steam train, an old car, a yellow taxi, a bus, a hot air balloon, a
            truck, a motorcycle, an aeroplane, a fishing boat, a tram, a tractor, a helicopter, a canoe, a space
            rocket, a police car, a cargo ship, a scooter, a camper van, a sports car, a submarine
            """
        ),
        words(
            """
            , moving fast, parked, with its lights on, covered with snow, with passengers, being repaired, seen from
            the side, full of flowers, leaving, with open doors
            """
        ),
        words(
            """
            on a country road, in the city, on the sea, in front of a garage, , over green fields, on a bridge, in a
            desert, at a harbour, in a tunnel, near a forest, at sunset, in a museum
            """
        ),
    ),
    Category(
        words(
            """
            a vase of tulips, an old clock, a pile of books, a guitar, a pair of boots, a lamp, a chess board, a
            teapot, a camera, a pocket watch, a violin, a globe, a typewriter, a toy robot, a candle, a mirror, a
            sewing machine, a key, scissors, a blue chair, a backpack, an umbrella, a telescope, a wooden box, a
            hat, glasses, a piano
            """
        ),
        words(
            """
            , broken, covered with dust, made of glass, in use, seen from above, half in shadow, tied with a ribbon,
            next to a cup, made of gold, with scratches, close up
            """
        ),
        words(
            """
            on a table, on a shelf, on the floor, in a shop window, , on a white background, in an attic, on a
            carpet, on a windowsill, in a workshop, on wet stones, against a green wall
            """
        ),
    ),
    Category(
        words(
            """
            a living room, a small bedroom, a kitchen, a bathroom, a library, a classroom, a workshop, a cafe, an
            office, a concert hall, a hospital corridor, a staircase, a theatre, a laundry room, a wine cellar, a
            hotel lobby, a nursery, a barber shop, an empty warehouse, a bookshop, a gym, a dining room
            """
        ),
        words(
            """
            , with large windows, full of plants, with a fireplace, with blue walls, with wooden furniture, in a
            mess, with a checkered floor, with many lamps, with a cat on the carpet, with high ceilings
            """
        ),
        words(
            """
            , in the morning, at night, in an old house, in a modern flat, with rain outside, in winter, in a
            castle, on a ship, in a small town
            """
        ),
    ),
    Category(
        words(
            """
            a dragon, a knight, a wizard, a mermaid, a robot, a unicorn, a ghost, an alien, a fairy, a giant, a
            pirate, a talking tree, a phoenix, a troll, a flying whale, a clockwork bird, a sea monster, an elf, a
            stone golem, a samurai, a snow queen, a vampire
            """
        ),
        words(
            """
            , holding a lantern, reading a map, breathing fire, asleep, with glowing eyes, riding a horse, made of
            ice, playing chess, in golden armour, surrounded by fireflies, drinking tea
            """
        ),
        words(
            """
            in a cave, on top of a mountain, in an enchanted forest, above the clouds, , in a ruined city, in space,
            at the bottom of the sea, in a castle, on a floating island, in a library, under two moons
            """
        ),
    ),
    Category(
        words(
            """
            children playing football, a runner, a surfer, a skier, a tennis player, a band on stage, a crowd, a
            street musician, people dancing, a family at dinner, a climber, a boxer, workers on a roof, a wedding, a
            bicycle race, a basketball game, fireworks, a swimmer, a chess game, a parade, a market seller, a kite
            """
        ),
        words(
            """
            , in motion, in bright clothes, seen from behind, in the distance, at the finish, in black and white,
            celebrating, taking a rest, in the evening, with an audience
            """
        ),
        words(
            """
            in a stadium, on a beach, in the mountains, in an old town, , on a school yard, in a park, on a frozen
            lake, in the street, by the river, in a big hall, under coloured lights
            """
        ),
    ),
)
MEDIA = words(
    """
    a photo of, a close-up photo of, a black and white photo of, an oil painting of, a watercolour of, a pencil
    drawing of, a cartoon of, a 3d render of, pixel art of, a woodcut of, a children's book illustration of, a flat
    vector drawing of, an ink sketch of, a film still of, a poster of, a pastel drawing of, a blurry snapshot of, a
    studio photo of
    """
)
ENDINGS = words(
    """
    soft light, bright colours, from a low angle, wide angle, high contrast, warm colours, pale colours, strong
    shadows, from far away, detailed, minimal, evening light, shallow depth of field, blue tones, vintage, simple
    background
    """
)


def caption(category: Category, turn: int, random_: random.Random) -> str:
    """A caption of this category. Its subjects take turns."""
    parts = (
        category.subjects[turn % len(category.subjects)],
        random_.choice(category.doings),
        random_.choice(category.places),
    )
    scene = " ".join(part for part in parts if part)
    if random_.random() < 1 / 2:
        scene = f"{random_.choice(MEDIA)} {scene}"
    return f"{scene}, {random_.choice(ENDINGS)}" if random_.random() < 1 / 3 else scene


def captions(count: int = COUNT) -> list[str]:
    """So many captions, no two alike, of each category in turn. They are the same each time."""
    random_, found = random.Random(0), dict[str, None]()
    while len(found) < count:
        turn, category = divmod(len(found), len(CATEGORIES))
        found.setdefault(caption(CATEGORIES[category], turn, random_))
    return list(found)


def run(config: GeneralCaptionsConfig) -> None:
    """Write them, and list the checksums."""
    write_bytes(config.out / PROMPTS / "general.txt", "".join(f"{line}\n" for line in captions()).encode())
    write_json(config.out / CHECKSUMS, checksums(config.out))


if __name__ == "__main__":
    sys.exit(main_of(GeneralCaptionsConfig, run))
