"""The words the pocket model knows: subjects and colors of the Attend-and-Excite benchmark, and everyday nouns."""

from __future__ import annotations

# The middle of each tint's ramp, sRGB 0-255; dark and light ends are black and white except where that would
# turn the color into another one.
COLORS = {
    "red": (214, 30, 36),
    "orange": (245, 130, 20),
    "yellow": (248, 214, 30),
    "green": (44, 160, 60),
    "blue": (40, 90, 215),
    "purple": (125, 50, 175),
    "pink": (245, 120, 180),
    "brown": (125, 75, 38),
    "gray": (128, 128, 132),
    "black": (40, 40, 44),
    "white": (240, 240, 242),
}
# Subject -> its icon, by the name that all the icon sets give it. One drawing per subject: a small model learns a few
# things well.
ANIMALS = {
    "cat": "cat-face",
    "dog": "dog-face",
    "bird": "bird",
    "bear": "bear",
    "lion": "lion",
    "horse": "horse-face",
    "elephant": "elephant",
    "monkey": "monkey-face",
    "frog": "frog",
    "turtle": "turtle",
    "rabbit": "rabbit-face",
    "mouse": "mouse-face",
}
OBJECTS = {
    "backpack": "backpack",
    "glasses": "glasses",
    "crown": "crown",
    "suitcase": "luggage",
    "chair": "chair",
    "balloon": "balloon",
    "bow": "ribbon",
    "car": "automobile",
    "bowl": "bowl-with-spoon",
    "bench": None,  # no icon set has one: drawn in drawings.py
    "clock": "mantelpiece-clock",
    "apple": "red-apple",
}
MORE = {
    "airplane": "airplane",
    "ball": "soccer-ball",
    "banana": "banana",
    "bee": "honeybee",
    "bell": "bell",
    "bicycle": "bicycle",
    "boat": "sailboat",
    "book": "closed-book",
    "burger": "hamburger",
    "bus": "bus",
    "butterfly": "butterfly",
    "cactus": "cactus",
    "cake": "birthday-cake",
    "camera": "camera",
    "carrot": "carrot",
    "cheese": "cheese-wedge",
    "cherries": "cherries",
    "chicken": "chicken",
    "cloud": "cloud",
    "coffee": "hot-beverage",
    "cow": "cow-face",
    "crocodile": "crocodile",
    "diamond": "gem-stone",
    "donut": "doughnut",
    "dragon": "dragon-face",
    "dress": "dress",
    "drum": "drum",
    "duck": "duck",
    "fish": "fish",
    "flower": "cherry-blossom",
    "fox": "fox",
    "ghost": "ghost",
    "gift": "wrapped-gift",
    "giraffe": "giraffe",
    "guitar": "guitar",
    "hat": "top-hat",
    "heart": "red-heart",
    "house": "house",
    "key": "key",
    "koala": "koala",
    "laptop": "laptop",
    "lemon": "lemon",
    "lock": "locked",
    "moon": "crescent-moon",
    "mushroom": "mushroom",
    "octopus": "octopus",
    "orange": "tangerine",
    "owl": "owl",
    "panda": "panda",
    "pear": "pear",
    "pencil": "pencil",
    "penguin": "penguin",
    "phone": "mobile-phone",
    "pig": "pig-face",
    "pineapple": "pineapple",
    "pizza": "pizza",
    "pumpkin": "jack-o-lantern",
    "rainbow": "rainbow",
    "ring": "ring",
    "robot": "robot",
    "rocket": "rocket",
    "rose": "rose",
    "scissors": "scissors",
    "shark": "shark",
    "sheep": "ewe",
    "shirt": "t-shirt",
    "snake": "snake",
    "snowman": "snowman-without-snow",
    "star": "star",
    "strawberry": "strawberry",
    "sun": "sun",
    "sunflower": "sunflower",
    "teddy": "teddy-bear",
    "television": "television",
    "tiger": "tiger-face",
    "tomato": "tomato",
    "train": "locomotive",
    "tree": "deciduous-tree",
    "trophy": "trophy",
    "tulip": "tulip",
    "umbrella": "umbrella",
    "unicorn": "unicorn",
    "watermelon": "watermelon",
    "whale": "spouting-whale",
}
SUBJECTS = {**ANIMALS, **OBJECTS, **MORE}
# Second meanings of words, "word (sense)". What else a scene shows decides, see `DECIDES`; "orange" is a color before
# a noun.
SENSES = {
    "bow (weapon)": "bow-and-arrow",
    "mouse (computer)": "computer-mouse",
    "star (sky)": "sparkles",
}
DRAWN = {**SUBJECTS, **SENSES}
# Sense -> the subjects beside which the word means it. Beside all others it means its first sense; alone, either.
DECIDES = {
    "bow (weapon)": ("dragon", "fox", "snake", "tiger"),
    "mouse (computer)": ("camera", "laptop", "phone", "robot", "television"),
    "star (sky)": ("cloud", "moon", "rainbow", "rocket", "sun"),
}
# What kind of thing each is: one head of each layer of cross-attention is for it, see `denoiser.py`.
CONCEPTS = {
    "Animals": {*ANIMALS}
    | set(
        "bee butterfly chicken cow crocodile dragon duck fish fox giraffe koala octopus owl panda penguin pig shark "
        "sheep snake tiger unicorn whale".split()
    ),
    "Color": set(),  # the color words
    "Food": set(
        "apple banana burger cake carrot cheese cherries coffee donut lemon orange pear pineapple pizza pumpkin "
        "strawberry tomato watermelon".split()
    ),
    "Plants": set("cactus flower mushroom rose sunflower tree tulip".split()),
    "Objects": set(
        "airplane ball balloon bell bench bicycle boat book bowl bus car chair diamond drum ghost gift guitar heart "
        "house key lock pencil rocket scissors star suitcase teddy train trophy umbrella".split()
    )
    | {"bow (weapon)"},
    "Clothing": set("backpack bow crown dress glasses hat ring shirt".split()),
    "Devices": {*"camera clock laptop phone robot television".split(), "mouse (computer)"},
    "Sky": {*"cloud moon rainbow snowman sun".split(), "star (sky)"},
}
# What takes a small model longest to learn, by how it looked after 990,000 images and later: how many times as often as
# the others it is drawn.
HARD = {
    **dict.fromkeys(
        "airplane ball bicycle book bow bus camera coffee cow crocodile dragon drum flower giraffe guitar house koala "
        "laptop lock mouse octopus penguin phone robot rocket sheep shirt snake snowman star teddy television train "
        "unicorn whale".split(),
        4,
    ),
    "elephant": 8,
    "shark": 8,
    "pig": 14,
}


def concept_of(name: str) -> int:
    """Which of `CONCEPTS` something drawn is, by number."""
    return next(i for i, names in enumerate(CONCEPTS.values()) if name in names)


def word_of(name: str) -> str:
    """The word for what is drawn: of "mouse (computer)", "mouse"."""
    return name.split(" (")[0]


# What a color word is likely to be said of; animals, food and weather get one now and then.
COLORED = frozenset(
    {*OBJECTS}
    | set(
        "ball bell bicycle boat book bus butterfly camera diamond dress drum fish flower gift guitar hat heart house "
        "key laptop phone ring robot rocket rose shirt snake star train tulip umbrella".split()
    )
    | {*SENSES}
)

# Newer nouns whose view in the generator's set no other set has: the detector learns that drawing, too. None of them is
# a word of the benchmark.
LONE_VIEWS = (
    *"bee boat bus chicken cow crocodile dragon fish flower ghost gift mushroom octopus orange owl pear".split(),
    *"penguin pig ring rocket rose scissors shark snake teddy tiger train trophy unicorn whale".split(),
    *SENSES,
)
# Icons of things that have no word here: the detector learns to pass over them.
STRANGERS = (
    "hammer axe anchor skull bone fire egg croissant bread crab snail scorpion mosquito kangaroo badger "
    "candle ladder window toilet shower bathtub magnet microscope telescope satellite syringe pill sponge "
    "broom basket bucket soap toothbrush gear nut-and-bolt wrench screwdriver brick rock wood yarn thread "
    "safety-pin abacus dna test-tube compass world-map tent volcano mountain fountain ferris-wheel kite yo-yo "
    "game-die joystick puzzle-piece chess-pawn mirror crystal-ball envelope package newspaper scroll "
    "briefcase calendar pushpin paperclip straight-ruler dagger shield boomerang hook chains gloves socks "
    "scarf coat jeans shorts kimono necktie high-heeled-shoe lipstick watch hourglass thermometer battery "
    "floppy-disk printer loudspeaker megaphone trumpet saxophone accordion maracas flute avocado eggplant "
    "broccoli potato onion garlic pretzel bagel pancakes bacon taco burrito popcorn sushi lollipop candy "
    "honey-pot teapot wine-glass beer-mug fork-and-knife coral jellyfish lobster shrimp squid worm ant beetle "
    "cockroach leaf-fluttering-in-wind herb four-leaf-clover maple-leaf palm-tree evergreen-tree snowflake "
    "droplet tornado comet high-voltage flying-disc bowling bullseye pool-8-ball sled skis ice-skate "
    "fishing-pole goal-net martial-arts-uniform canoe fuel-pump stop-sign construction parachute "
    "satellite-antenna castle stadium factory hut church"
).split()
