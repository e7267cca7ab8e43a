"""The words of the small world: invented names, things, trades, months.

Names are composed of syllables. There are far more names than the pages use, so that a model has to
copy them and cannot know them.
"""

from __future__ import annotations

from random import Random

ONSETS = "b br d dr f g gr h j k kl l m n p pr r s st t tr v w z".split()
NUCLEI = "a e i o u".split()
CODAS = "l m n r s t x nd rk lt".split()
TOWN_ENDINGS = "wick ford ham stead mere vale port ton burg haven dale gate".split()
SURNAME_ENDINGS = "sen ova man ski etti well brook ard ini dottir escu berg".split()

FEMALE = (
    "Ana Mira Lena Ruth Ines Clara Nora Ida Vera Alma Greta Paula Rosa Tilda Yara Edith Hanna Marta "
    "Olga Sonia Zelda Carmen Dora Flora"
).split()
MALE = (
    "Tom Igor Paul Omar Hugo Karl Ivan Leo Max Otto Ravi Sven Adam Bruno Emil Felix Jonas Luis Niko "
    "Oscar Pedro Tariq Viktor Walter"
).split()

TRADES = (
    "potter baker nurse pilot painter farmer lawyer singer teacher tailor sailor plumber chemist "
    "dentist gardener carpenter librarian architect translator journalist"
).split()
INSTRUMENTS = "cello flute piano violin trumpet guitar harp drum clarinet organ accordion banjo".split()
PRODUCTS = (
    "cheese glass honey paper salt silk soap tea bells clocks carpets candles knives pottery rope wool"
).split()

THINGS = (
    "apples pears plums eggs stamps coins books cards shells stones candles cups plates chairs lamps "
    "pencils marbles tickets bottles jars buttons keys roses tulips cakes loaves melons lemons onions "
    "carrots mugs spoons boxes toys kites maps posters photos letters bricks tiles planks nails "
    "screws sheep goats hens horses bikes"
).split()
CONTAINERS = "boxes crates bags baskets trays shelves rows packs tables rooms barrels carts".split()
GROUPS = "children friends guests neighbours players workers cousins students".split()
SHOPS = "bakery bookshop museum library school farm market factory garage hotel theatre club".split()
STREETS = "Mill Church Station River Garden Castle Bridge Market King Orchard".split()

WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September October November December").split()


def syllable(rng: Random) -> str:
    """An onset and a nucleus, sometimes with a coda."""
    coda = rng.choice(CODAS) if rng.random() < 0.4 else ""
    return rng.choice(ONSETS) + rng.choice(NUCLEI) + coda


def town(rng: Random) -> str:
    """A town's name, for example Stalwick."""
    return (syllable(rng) + rng.choice(TOWN_ENDINGS)).capitalize()


def river(rng: Random) -> str:
    """A river's name, for example Korbe."""
    return (syllable(rng) + rng.choice(NUCLEI)).capitalize()


def surname(rng: Random) -> str:
    """A family name, for example Kolnova."""
    return (syllable(rng) + rng.choice(SURNAME_ENDINGS)).capitalize()
