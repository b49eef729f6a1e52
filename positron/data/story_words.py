"""The words of the built-in stories: people and things with the forms that sentences need, and lists to draw from.

A *kind* is a list of options, each with named forms (`""` is the plain one), that a story binds to a slot and then
uses again: who, what, where. A *list* is drawn from afresh each time a sentence needs a word of its sort.
"""

from __future__ import annotations

Forms = dict[str, str]

_GIRLS = [
    "Lily",
    "Mia",
    "Anna",
    "Sue",
    "Ella",
    "Lucy",
    "Rosie",
    "Emma",
    "Zoe",
    "Nora",
    "Ruby",
    "Molly",
    "Daisy",
    "Clara",
    "Ivy",
    "Hazel",
    "Maya",
    "Nina",
    "Tina",
    "Jane",
    "Amy",
    "Kate",
    "Sara",
    "Alice",
]
_BOYS = [
    "Tom",
    "Ben",
    "Max",
    "Tim",
    "Sam",
    "Jack",
    "Leo",
    "Finn",
    "Noah",
    "Oscar",
    "Henry",
    "Charlie",
    "Peter",
    "Billy",
    "Toby",
    "Felix",
    "Hugo",
    "Oliver",
    "Lucas",
    "Adam",
    "Mark",
    "Joe",
    "Dan",
    "Luke",
]
_SHE = {"he": "she", "his": "her", "him": "her", "himself": "herself"}
_HE = {"he": "he", "his": "his", "him": "him", "himself": "himself"}


def _children() -> list[Forms]:
    """Girls and boys in turn, the commonest names first."""
    children = []
    for girl, boy in zip(_GIRLS, _BOYS, strict=True):
        children += [{"": girl, "boy": "girl", **_SHE}, {"": boy, "boy": "boy", **_HE}]
    return children


def _grown_ups() -> list[Forms]:
    women = [{"": word, "call": word.capitalize(), **_SHE} for word in ("mom", "grandma", "aunt", "big sister")]
    men = [{"": word, "call": word.capitalize(), **_HE} for word in ("dad", "grandpa", "uncle", "big brother")]
    return [person for pair in zip(women, men, strict=True) for person in pair]


def _things(words: str) -> list[Forms]:
    return [{"": word, "a": f"{'an' if word[0] in 'aeiou' else 'a'} {word}"} for word in words.split(", ")]


def _places(words: str) -> list[Forms]:
    """`in the park`: the preposition belongs to the place."""
    places = []
    for phrase in words.split(", "):
        preposition, place = phrase.split(" ", 1)
        places.append({"": place, "in": f"{preposition} {place}"})
    return places


KINDS: dict[str, list[Forms]] = {
    "child": _children(),
    "grown": _grown_ups(),
    "color": _things("red, blue, green, yellow, orange, purple, pink, white, brown, golden, silver, gray"),
    "toy": _things(
        "ball, kite, doll, teddy bear, toy car, toy train, drum, robot, puppet, yo-yo, whistle, top, toy boat, marble, "
        "balloon, wagon, toy horse, toy rabbit, toy plane, jump rope, paper crown, music box, toy truck, magic wand"
    ),
    "play_place": _places(
        "in the park, at the beach, in the garden, in the yard, on the hill, at the playground, in the meadow, "
        "by the river, at the school, in the village square, by the lake, at the farm, in the orchard, on the lawn, "
        "at the market, in the field"
    ),
    "spot": _things(  # under, behind, inside: said with `near`
        "bush, bench, tree, bucket, basket, fence, rock, log, wheelbarrow, flower pot, ladder, cart, barrel, wall, "
        "pile of leaves, mailbox"
    ),
    "skill": [
        {"": thing, "do": do, "doing": doing}
        for thing, do, doing in (
            ("bike", "ride a bike", "riding"),
            ("piano", "play the piano", "playing"),
            ("flute", "play the flute", "playing"),
            ("guitar", "play the guitar", "playing"),
            ("skateboard", "ride a skateboard", "riding"),
            ("scooter", "ride a scooter", "riding"),
            ("pony", "ride a pony", "riding"),
            ("violin", "play the violin", "playing"),
            ("canoe", "paddle a canoe", "paddling"),
            ("hula hoop", "spin a hula hoop", "spinning"),
            ("unicycle", "ride a unicycle", "riding"),
            ("trumpet", "play the trumpet", "playing"),
        )
    ],
    "practice_place": _places(
        "in the backyard, behind the barn, in the driveway, on the quiet road, in the big hall, by the garage, "
        "on the porch, behind the house, in the schoolyard, by the pond"
    ),
    "animal": _things(
        "bird, kitten, puppy, rabbit, squirrel, duckling, hedgehog, lamb, turtle, fox, mouse, owl, fawn, frog, goat, "
        "piglet, sparrow, chick, pony, robin, bunny, goose"
    ),
    "comfort": _things(
        "blanket, scarf, towel, basket, bottle of milk, bandage, pillow, bowl of water, cushion, ribbon, sweater, "
        "box of hay"
    ),
    "wild_place": _places(
        "in the forest, by the stream, on the path, in the tall grass, by the old bridge, under the oak tree, "
        "in the valley, near the windmill, by the waterfall, at the edge of the woods, in the ditch, near the stable"
    ),
    "indoor": _things(
        "puzzle, puppet show, blanket fort, train set, card game, paper boat, storybook, dollhouse, marble run, "
        "dress-up box, drawing, song book, board game, clay castle"
    ),
    "trip_place": _places(
        "at the zoo, at the beach, at the fair, at the circus, at the pool, at the museum, at the castle, "
        "in the mountains, at the ice rink, at the harbor, at the picnic meadow, at the toy shop"
    ),
    "gift": _things(
        "necklace, book, hat, painting, cake, bracelet, clock, mug, flower crown, card, scarf, lantern, birdhouse, vase, "
        "photo album, pie"
    ),
    "hiding_place": _places(
        "in the closet, under the bed, in the shed, behind the sofa, in the cupboard, in the cellar, behind the curtain, "
        "under the stairs, in the toy chest, in the garage, behind the bookshelf, in the kitchen drawer"
    ),
    "light": _things(
        "lamp, candle, flashlight, lantern, teddy bear, wooden sword, whistle, lucky coin, magic stone, red cape, "
        "night light, little bell"
    ),
    "dark_place": _places(
        "in the attic, in the cellar, in the cave, in the tunnel, in the barn, in the old tower, in the dark hallway, "
        "in the empty house, in the mill, in the wine cellar"
    ),
    "food": _things(
        "sandwich, apple, cookie, banana, cupcake, pear, muffin, pancake, peach, orange, bun, slice of pizza, "
        "piece of cake, bag of cherries, bowl of soup, plum, carrot, donut"
    ),
    "eat_place": _places(
        "in the park, at the school, on the playground, at the picnic table, by the fountain, under the apple tree, "
        "on the bench, at the bus stop, on the grass, by the pond, at the train station, on the pier"
    ),
    "building": _things(
        "sandcastle, tower, treehouse, snowman, raft, birdhouse, tent, dam, bridge, castle, go-cart, hut, rocket, "
        "igloo, swing, stone circle"
    ),
    "build_place": _places(
        "at the beach, in the backyard, by the river, in the snow, in the meadow, behind the house, on the shore, "
        "in the sandbox, by the creek, on the playground, under the big tree, in the garden"
    ),
    "plant": _things(
        "sunflower, pumpkin, bean, tomato, rose, tulip, carrot, strawberry, apple tree, lemon tree, melon, pea, "
        "corn plant, daisy"
    ),
    "garden_place": _places(
        "in the garden, by the window, behind the house, by the fence, in the flower bed, near the well, "
        "by the front door, in the greenhouse, next to the gate, by the path"
    ),
    "fragile": _things(
        "vase, plate, cup, window, lamp, mirror, bowl, teapot, picture frame, glass, snow globe, jar of honey"
    ),
    "room": _places(
        "in the kitchen, in the living room, in the hallway, in the dining room, in the bedroom, in the library, "
        "in the study, on the balcony"
    ),
}

LISTS: dict[str, tuple[str, ...]] = {
    "trait": (
        "little",
        "kind",
        "brave",
        "curious",
        "happy",
        "clever",
        "quiet",
        "cheerful",
        "gentle",
        "funny",
        "polite",
        "lively",
        "careful",
        "friendly",
        "shy",
        "bright",
        "merry",
        "patient",
        "thoughtful",
        "sweet",
        "helpful",
        "playful",
        "daring",
        "dreamy",
    ),
    "weather": (
        "sunny",
        "warm",
        "windy",
        "cloudy",
        "bright",
        "cool",
        "fresh",
        "mild",
        "quiet",
        "lovely",
        "chilly",
        "golden",
        "misty",
        "breezy",
        "clear",
        "calm",
    ),
    "time": ("morning", "afternoon", "day", "evening"),
    "walked": (
        "walked",
        "ran",
        "skipped",
        "hurried",
        "raced",
        "marched",
        "wandered",
        "hopped",
        "rushed",
        "strolled",
        "jogged",
        "danced",
        "dashed",
        "trotted",
        "went",
        "tiptoed",
    ),
    "said": ("said", "whispered", "called", "murmured"),
    "cheered": ("cheered", "laughed", "shouted", "sang", "called", "giggled", "cried", "yelled"),
    "sobbed": ("sobbed", "sighed", "sniffed", "mumbled", "groaned", "whimpered", "moaned", "wailed"),
    "happy": ("happy", "glad", "proud", "pleased", "delighted", "cheerful", "joyful", "thankful", "grateful", "merry"),
    "sad": ("sad", "upset", "lonely", "unhappy", "gloomy", "miserable", "disappointed", "heartbroken"),
    "scared": ("scared", "nervous", "worried", "frightened", "afraid", "anxious"),
    "tired": ("tired", "sleepy", "hungry", "thirsty", "cold", "weak"),
    "slowly": (
        "slowly",
        "softly",
        "carefully",
        "gently",
        "quietly",
        "calmly",
        "patiently",
        "quickly",
        "kindly",
        "bravely",
    ),
    "smiled": ("smiled", "grinned", "laughed", "beamed", "nodded", "clapped", "giggled", "winked"),
    "searched": ("looked", "searched", "peeked", "checked", "hunted", "peered"),
    "nice": (
        "nice",
        "good",
        "wonderful",
        "lovely",
        "sweet",
        "great",
        "beautiful",
        "fine",
        "special",
        "pretty",
        "perfect",
        "marvelous",
    ),
    "big": ("big", "small", "tiny", "huge", "new", "soft", "strange", "funny"),
    "near": ("behind", "under", "next to", "beside", "near"),
    "sky": ("birds", "butterflies", "bees", "clouds", "leaves", "crickets", "swallows", "dragonflies"),
    "did": ("danced", "drifted", "fluttered", "floated", "whirled", "glided", "played", "passed"),
    "game": ("tag", "hide and seek", "catch", "hopscotch", "pirates", "school", "explorers", "leapfrog"),
    "hugged": ("hugged", "kissed", "thanked", "squeezed", "cuddled", "praised"),
    "minutes": (
        "an hour",
        "a long time",
        "a little while",
        "ten minutes",
        "half the day",
        "two hours",
        "a whole hour",
        "some time",
    ),
    "number": ("two", "three", "four", "five", "six", "seven"),
    "fell": ("got it wrong", "slipped", "stumbled", "failed", "got stuck", "made a mistake"),
    "treat": ("hot chocolate", "warm milk", "apple juice", "fresh bread", "ice cream", "popcorn", "honey cake", "tea"),
    "grew": ("a tiny root", "a green tip", "a little leaf", "a thin stem", "a round bud", "a curly sprout"),
    "noise": ("a squeak", "a bump", "a rattle", "a creak", "a rustle", "a tap", "a whisper", "a thump"),
    "feeling": ("warm inside", "light as a feather", "ten feet tall", "safe again", "much better", "very lucky"),
    "built": ("stacked", "tied", "pushed", "lifted", "carried", "rolled"),
    "stuff": ("sticks", "stones", "boards", "ropes", "shells", "branches", "boxes", "leaves"),
    "broke": ("cracked", "wobbled", "tipped", "shook", "leaned", "collapsed"),
    "held": ("held", "picked", "carried", "lifted", "wrapped", "rocked"),
}
