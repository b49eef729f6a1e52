"""Define the words of the built-in stories, in KINDS and LISTS.

KINDS maps the name of a kind, such as `child`, to its options, such as the names of children. An option is a dict from the name
of a form to a text. The form named `""` is the plain one, such as `apple`. If sentences need the word with its article, such as
`an apple`, there is also a form named `a`. A story draws one option for a slot, such as the hero, and uses this option at every
mention of the slot.

LISTS maps the name of a list, such as `trait`, to words without forms. A new word is drawn at each use. Therefore every word of
a list must fit wherever the list is used.
"""

from __future__ import annotations

Forms = dict[str, str]

# The article depends on the sound. These words begin with a vowel that is spoken as a consonant, or with a silent h.
_SPOKEN_CONSONANT = ("uni", "uku", "use", "one")
_SILENT_H = ("honest", "hour")


def with_article(words: str) -> str:
    """Put the indefinite article before a noun: `apple` -> `an apple`."""
    vowel = words[0] in "aeiou" and not words.startswith(_SPOKEN_CONSONANT)
    return ("an " if vowel or words.startswith(_SILENT_H) else "a ") + words


_GIRLS = """Lily Mia Anna Sue Ella Lucy Rosie Emma Zoe Nora Ruby Molly Daisy Clara Ivy Hazel Maya Nina Tina Jane
    Amy Kate Sara Alice"""
_BOYS = """Tom Ben Max Tim Sam Jack Leo Finn Noah Oscar Henry Charlie Peter Billy Toby Felix Hugo Oliver Victor Adam
    Mark Joe Dan Luke"""
_SHE = {"he": "she", "his": "her", "him": "her", "himself": "herself"}
_HE = {"he": "he", "his": "his", "him": "him", "himself": "himself"}


def _children() -> list[Forms]:
    """Return girls and boys alternately, the most common names first."""
    children: list[Forms] = []
    for girl, boy in zip(_GIRLS.split(), _BOYS.split(), strict=True):
        children += [{"": girl, "boy": "girl", **_SHE}, {"": boy, "boy": "boy", **_HE}]
    return children


def _grown_ups() -> list[Forms]:
    """Return the grown-up relatives; the form `call` is the name by which a child addresses a relative."""
    women = [("mom", "Mom"), ("grandma", "Grandma"), ("aunt", "Auntie"), ("nana", "Nana")]
    men = [("dad", "Dad"), ("grandpa", "Grandpa"), ("uncle", "Uncle"), ("papa", "Papa")]
    grown: list[Forms] = []
    for (woman, her_call), (man, his_call) in zip(women, men, strict=True):
        grown += [{"": woman, "call": her_call, **_SHE}, {"": man, "call": his_call, **_HE}]
    return grown


def _words(words: str) -> tuple[str, ...]:
    """Split a text at its commas, and replace line ends within a word by spaces."""
    return tuple(" ".join(word.split()) for word in words.split(","))


def _things(words: str, **forms: str) -> list[Forms]:
    return [{"": word, "a": with_article(word), **forms} for word in _words(words)]


def _places(words: str) -> list[Forms]:
    """Return places from phrases that begin with a preposition, such as `at the zoo`.

    The plain form is the phrase without its preposition (`the zoo`). The form named `in` is the whole phrase, whatever its
    preposition.
    """
    return [{"": phrase.split(" ", 1)[1], "in": phrase} for phrase in _words(words)]


def _skills(words: str) -> list[Forms]:
    """Return the forms of each skill in `words`, which are phrases such as `ride a bike`, separated by commas.

    The forms of `ride a bike` are `bike` (plain form, the key ""), `a bike` (key `a`), `ride a bike` (key `do`) and `riding a
    bike` (key `doing`).
    """
    skills: list[Forms] = []
    for phrase in _words(words):
        verb, article, thing = phrase.split(" ", 2)
        gerund = (verb.removesuffix("e") if verb == "ride" else verb + ("n" if verb == "spin" else "")) + "ing"
        skills.append({"": thing, "a": with_article(thing), "do": phrase, "doing": f"{gerund} {article} {thing}"})
    return skills


KINDS: dict[str, list[Forms]] = {
    "child": _children(),
    "grown": _grown_ups(),
    "color": _things("red, blue, green, yellow, orange, purple, pink, white, brown, golden, silver, gray"),
    # The kind of toy determines how it gets lost (`gone`).
    "toy": [
        *_things("ball, marble, toy car, wagon, toy truck, toy train, hoop, rubber ring", gone="rolled away"),
        *_things("kite, balloon, toy plane, paper crown, pinwheel, paper bird, flag, frisbee", gone="blew away"),
        *_things(
            """doll, teddy bear, drum, robot, puppet, yo-yo, whistle, toy boat, toy horse, toy rabbit, jump rope,
            music box, magic wand, rubber duck, toy dinosaur, stuffed fox""",
            gone="got lost",
        ),
    ],
    "play_place": _places(
        """in the park, at the beach, in the garden, in the yard, on the hill, at the playground, in the meadow,
        by the river, in the schoolyard, in the village square, by the lake, at the farm, in the orchard, on the lawn,
        at the market, in the field"""
    ),
    "spot": _things(
        """bush, bench, bucket, basket, fence, rock, log, wheelbarrow, flower pot, ladder, cart, barrel, tree stump,
        pile of leaves, crate, signpost"""
    ),
    "skill": _skills(
        """ride a bike, play the flute, play the guitar, ride a skateboard, ride a scooter, play the violin,
        spin a hula hoop, ride a unicycle, play the trumpet, play the banjo, play the ukulele, play the harmonica,
        play the clarinet, play the accordion, fly a kite, throw a boomerang"""
    ),
    "practice_place": _places(
        """in the backyard, behind the barn, near the driveway, by the road, near the hall, by the garage,
        near the porch, behind the house, in the schoolyard, by the pond, near the lake, in the courtyard"""
    ),
    "animal": _things(
        """bird, kitten, puppy, rabbit, squirrel, duckling, hedgehog, lamb, turtle, fox, mouse, owl, fawn, frog, goat,
        piglet, sparrow, chick, robin, bunny, goose, raccoon, otter, beaver"""
    ),
    "house_animal": _things("kitten, puppy, mouse, owl, hedgehog, squirrel, frog, hen, duckling, bat, raccoon, rabbit"),
    "comfort": _things(
        """blanket, scarf, towel, basket, bandage, pillow, bowl of water, cushion, ribbon, sweater, box of hay,
        carrot, apple, pair of mittens, piece of bread, bag of seeds"""
    ),
    "wild_place": _places(
        """in the forest, by the stream, on the path, in the tall grass, by the old bridge, under the oak tree,
        in the valley, near the windmill, by the waterfall, near the stable, in the ditch, behind the barn"""
    ),
    "indoor": _things(
        """puzzle, puppet show, blanket fort, train set, card game, paper boat, storybook, dollhouse, marble run,
        costume box, painting, song book, board game, clay castle, magic show, paper dragon"""
    ),
    "trip_place": _places(
        """at the zoo, at the beach, at the fair, at the circus, at the pool, at the museum, at the castle,
        in the mountains, at the lake, at the harbor, at the toy shop, at the farm"""
    ),
    "gift": _things(
        """necklace, book, hat, painting, cake, bracelet, clock, mug, flower crown, bookmark, scarf, lantern, birdhouse,
        vase, photo album, pie"""
    ),
    "hiding_place": _places(
        """in the closet, under the bed, in the shed, behind the sofa, in the cupboard, in the cellar,
        behind the curtain, under the stairs, in the toy chest, in the garage, behind the bookshelf, in the attic"""
    ),
    "light": _things(
        """lamp, candle, flashlight, lantern, teddy bear, wooden sword, whistle, lucky coin, magic stone, red cape,
        night light, little bell"""
    ),
    "dark_place": _places(
        """in the attic, in the cellar, in the cave, in the tunnel, in the barn, in the old tower, in the dark hallway,
        in the empty house, in the mill, in the shed, in the garage, in the boathouse"""
    ),
    "food": _things(
        """sandwich, apple, cookie, banana, cupcake, pear, muffin, pancake, peach, orange, bun, slice of pizza,
        piece of cake, bag of cherries, plum, carrot, donut, waffle, bagel, pretzel"""
    ),
    "eat_place": _places(
        """in the park, in the schoolyard, at the playground, at the picnic table, by the fountain,
        under the apple tree, on the bench, at the bus stop, on the lawn, by the pond, at the train station,
        on the pier"""
    ),
    "building": _things(
        """tower, treehouse, raft, birdhouse, tent, dam, bridge, castle, go-cart, hut, rocket, swing, fort, boat,
        lighthouse, windmill"""
    ),
    "build_place": _places(
        """at the beach, in the backyard, by the river, in the meadow, behind the house, on the shore, by the creek,
        at the playground, under the big tree, in the garden, behind the barn, in the field"""
    ),
    "plant": _things(
        """sunflower, pumpkin, bean, tomato, rose, tulip, carrot, strawberry, apple tree, lemon tree, melon,
        cherry tree, corn plant, daisy, cucumber, lily"""
    ),
    "garden_place": _places(
        """in the garden, under the window, behind the house, by the fence, in the flower bed, near the well,
        by the front door, in the greenhouse, next to the gate, by the path"""
    ),
    "fragile": _things(
        "vase, plate, cup, lamp, mirror, bowl, teapot, picture frame, glass, snow globe, candlestick, clay horse"
    ),
    "room": _places(
        """in the kitchen, in the living room, in the hallway, in the dining room, in the bedroom, in the library,
        in the study, on the balcony"""
    ),
}
# Some names and things are common and others rare, as in real texts. From the common ones a small model learns early that a
# story repeats what it has named; it then does the same with the rare ones.
WEIGHTS: dict[str, list[float]] = {
    kind: [1 / ((2 if kind == "child" else 4) + rank) for rank in range(len(options))]
    for kind, options in KINDS.items()
}

_WEEKDAYS = _words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")

LISTS: dict[str, tuple[str, ...]] = {
    # people
    "trait": _words(
        """kind, brave, curious, happy, clever, quiet, cheerful, gentle, funny, polite, lively, careful,
        friendly, shy, bright, merry, patient, thoughtful, sweet, helpful, playful, daring, dreamy, honest,
        jolly, smart, loyal, gifted, calm, bold, eager, generous"""
    ),
    "hair": _words(
        """brown, black, red, curly, long, short, blond, straight, wavy, dark, messy, shiny, golden, thick,
        soft, frizzy"""
    ),
    "age": _words("four, five, six, seven, eight, nine"),
    "happy": _words(
        """happy, glad, proud, pleased, delighted, cheerful, joyful, thankful, grateful, merry, excited,
        thrilled, content, relieved, hopeful, jolly"""
    ),
    "sad": _words(
        "sad, upset, unhappy, gloomy, miserable, disappointed, heartbroken, downhearted, glum, hurt, sorrowful, blue"
    ),
    "scared": _words(
        "scared, nervous, worried, frightened, afraid, anxious, alarmed, uneasy, shaky, timid, tense, jittery"
    ),
    "tired": _words(
        "tired, weary, exhausted, sleepy, worn out, hungry, thirsty, out of breath, weak, dizzy, hot, sore"
    ),
    "feeling": _words(
        """warm inside, as light as a feather, ten feet tall, much better, very lucky, safe and sound, on
        top of the world, as strong as a lion, as free as a bird, full of joy, like dancing, like singing"""
    ),
    # actions
    "went": _words(
        """walked, ran, skipped, hurried, raced, strolled, hopped, rushed, wandered, trotted, dashed,
        marched, jogged, hiked, sped, tiptoed"""
    ),
    "said": _words("said, whispered, murmured, remarked"),
    "cheered": _words("cheered, laughed, shouted, sang, called, giggled, cried, yelled, exclaimed, chuckled"),
    "sobbed": _words("sobbed, sighed, sniffed, mumbled, groaned, whimpered, moaned, wailed, muttered, cried"),
    "smiled": _words("smiled, grinned, laughed, beamed, nodded, clapped, giggled, winked, chuckled, bowed"),
    "hugged": _words("hugged, kissed, thanked, squeezed, embraced, cuddled, praised, high-fived"),
    "searched": _words("looked, searched, peeked, checked, hunted, peered"),
    "hummed": _words("hummed, sang, whistled, made up"),
    "held": _words("held, stroked, lifted, fed, washed, patted, rocked, warmed, petted, cuddled, soothed, calmed"),
    "fell": _words(
        """made a mistake, got stuck, went wrong, did it wrong, forgot what to do, got mixed up, started
        over, did it backwards"""
    ),
    "built": _words(
        "stacked, carried, pushed, lifted, dragged, sorted, gathered, tied, measured, counted, cleaned, painted"
    ),
    "broke": _words("cracked, wobbled, tipped over, shook, leaned, collapsed, crumbled, fell apart"),
    "kindly": _words(
        """kindly, softly, gently, warmly, quietly, calmly, tenderly, cheerfully, brightly, sweetly,
        politely, thoughtfully, with a smile, with a nod, with a wink, at once"""
    ),
    "sadly": _words(
        """sadly, softly, quietly, slowly, unhappily, weakly, miserably, bitterly, helplessly, with a sigh,
        with a sniff, with wet eyes, in a small voice, in a low voice"""
    ),
    "slowly": _words(
        """slowly, carefully, gently, quietly, calmly, patiently, with great care, with steady hands, little
        by little, without a word, without a sound, bit by bit"""
    ),
    "game": _words(
        """tag, hide and seek, catch, hopscotch, pirates, explorers, leapfrog, knights, astronauts, dragons,
        detectives, circus, marbles, shop, doctor, wizards, hospital, restaurant, cowboys, vikings,
        dominoes, cards, charades, follow the leader, blind man's bluff, treasure hunt, farmers, superheroes"""
    ),
    # properties of things
    "nice": _words(
        """nice, good, wonderful, lovely, great, beautiful, fine, special, pretty, perfect, marvelous,
        splendid, charming, fantastic, amazing, fabulous, delightful, superb, excellent, unusual, magical,
        remarkable, brilliant, extraordinary"""
    ),
    "size": _words("big, small, tiny, huge, long, round, flat, heavy, thick, smooth, rough, little"),
    "town": _words("small, little, quiet, sunny, busy, pretty, old, sleepy, green, tiny, lovely, windy"),
    "color": _words(
        """red, blue, green, yellow, orange, purple, pink, white, brown, golden, silver, gray, black,
        violet, turquoise, striped, spotted, checkered, shiny, colorful"""
    ),
    "weather": _words(
        """sunny, warm, windy, cloudy, bright, cool, fresh, mild, breezy, clear, calm, chilly, golden,
        crisp, lovely, quiet, foggy, hazy, frosty, dry, pleasant, sparkling, gray, beautiful"""
    ),
    # time, duration, number and place
    "time": tuple(f"{day}{part}" for day in _WEEKDAYS for part in ("", " morning", " afternoon")),
    "weekday": _WEEKDAYS,
    "minutes": _words(
        """an hour, a long time, a little while, ten minutes, half an hour, two hours, quite a while, a
        whole afternoon, a few minutes, twenty minutes, an hour and a half, a moment, a short time, five
        minutes, the longest time, almost an hour"""
    ),
    "number": _words(
        """two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen,
        fifteen, sixteen, twenty"""
    ),
    "near": _words("behind, under, next to, beside, near, in front of, right next to, right behind"),
    # other things, animals and actions
    "snack": _words(
        """apples, pears, cherries, grapes, cookies, waffles, muffins, crackers, plums, strawberries,
        raisins, sandwiches, bananas, peanuts, pretzels, buns, carrots, walnuts, dates, figs, oranges,
        peaches, blueberries, tomatoes, cupcakes, donuts, almonds, radishes, raspberries, bagels"""
    ),
    "meal": _words(
        """pancakes, noodles, soup, toast, pudding, pie, rice, omelets, dumplings, potatoes, stew, salad,
        porridge, pizza, fish, beans, spaghetti, meatballs, lasagna, pasta, corn, fried eggs, curry, ravioli"""
    ),
    "drink": _words(
        """milk, cocoa, tea, lemonade, water, juice, cider, hot chocolate, buttermilk, ginger ale, punch,
        soda, mint tea, apple juice, iced tea, grape juice"""
    ),
    "clothes": _words(
        """boots, socks, shoes, mittens, gloves, pants, shorts, sandals, overalls, sunglasses, earmuffs,
        stockings, sneakers, suspenders, leggings, jeans"""
    ),
    "flyers": _words(
        """butterflies, bees, swallows, dragonflies, sparrows, ladybugs, robins, crows, pigeons, ducks,
        geese, gulls, beetles, finches, larks, blackbirds, swans, jays, magpies, storks, wrens, parrots,
        herons, bumblebees"""
    ),
    "flew": _words(
        """flew past, flew around, flew in circles, flew up and down, flew away, flew over the roofs, flew
        high up, flew from tree to tree"""
    ),
    "creature": _words(
        """snail, beetle, caterpillar, cat, dog, cow, horse, sheep, lizard, toad, rooster, pigeon, ladybug,
        mole, crow, swan, donkey, ant, worm, magpie, badger, spider, grasshopper, cricket, weasel, pig,
        calf, foal, salamander, chipmunk, ferret, peacock"""
    ),
    "dream": _words(
        """dragons, castles, ships, stars, balloons, fish, ponies, turtles, rockets, mountains, trains,
        whales, islands, candles, elephants, kites, lions, tigers, giants, fairies, robots, mermaids,
        camels, penguins, dolphins, monkeys, unicorns, volcanoes, planets, dinosaurs, knights, wizards"""
    ),
    "petname": _words(
        """Star, Button, Pepper, Cloud, Biscuit, Pebble, Clover, Ginger, Snowy, Muffin, Coco, Sunny, Misty,
        Patch, Cookie, Dusty, Lucky, Sparky, Fluffy, Rusty, Honey, Peanut, Pumpkin, Sugar, Buddy, Whisper,
        Pickle, Bubbles, Waffles, Thunder, Tiny, Domino"""
    ),
    "flowers": _words(
        """daisies, roses, tulips, poppies, violets, lilies, buttercups, dandelions, bluebells, daffodils,
        sunflowers, marigolds, pansies, snowdrops, primroses, orchids"""
    ),
    "tree": _words(
        """oak, pine, maple, birch, willow, elm, chestnut tree, beech, ash, poplar, fir, spruce, cherry
        tree, pear tree, plum tree, walnut tree"""
    ),
    "smell": _words(
        """rain, grass, hay, pine, honey, fresh bread, earth, wood, wet leaves, mint, smoke, salt, cinnamon,
        soap, mushrooms, dust"""
    ),
    "noise": _words(
        """squeak, bump, rattle, creak, rustle, tap, thump, scratch, hiss, click, knock, groan, clatter,
        crackle, whistle, bang"""
    ),
    "stuff": _words(
        """sticks, stones, boards, ropes, branches, boxes, planks, poles, bricks, nails, logs, beams, tiles,
        pipes, wheels, crates"""
    ),
    "tool": _words(
        """hammer, saw, rope, bucket, shovel, ladder, ruler, brush, wheelbarrow, tape measure, rake, spade,
        hoe, wrench, trowel, crowbar"""
    ),
    "sprout": _words("tiny root, green tip, little leaf, thin stem, round bud, curly sprout, pale shoot, new leaf"),
    "furniture": _words(
        """sofa, table, chair, cupboard, desk, shelf, bookcase, wardrobe, stove, piano, bed, chest,
        armchair, dresser, bench, stool"""
    ),
    "happily": _words(
        """happily, loudly, proudly, merrily, excitedly, joyfully, gladly, cheerfully, gleefully, brightly,
        eagerly, with joy, with delight, with shining eyes, with a big smile, at once"""
    ),
    "very": _words("very, really, quite, truly, so, rather, awfully, a little"),
    "felt": _words("was, felt, seemed, looked"),
    "learned": _words("learned, understood, found out, discovered, realized, knew, saw, noticed"),
    "since": _words(
        "from then on, from that day on, after that day, since that day, ever since that day, from this day on"
    ),
    "saw": _words("saw, noticed, spotted, discovered, found"),
    "tune": _words("song, tune, melody, little song"),
    "superb": _words(
        """beautiful, wonderful, amazing, charming, fantastic, marvelous, splendid, delightful, magnificent,
        remarkable, fabulous, extraordinary"""
    ),
    "month": _words("January, February, March, April, May, June, July, August, September, October, November, December"),
    "then": _words("then, soon, a moment later, after a while, not much later, at that moment, just then, at last"),
    "gave": _words("gave, handed, passed, offered, brought"),
    "took": _words("took, grabbed, picked up, got, fetched, chose"),
    "watched": _words("looked at, watched, stared at, gazed at, glanced at, studied, peered at, admired"),
    "heard": _words("heard, noticed, was startled by, wondered about"),
    "wanted": _words("wanted, wished, hoped, longed"),
    "made": _words("made, created, finished, put together"),
    "put": _words("put, hid, stored, tucked, placed, left"),
    "loved": _words("loved, liked, adored, enjoyed"),
    "gone": _words("was gone, had vanished, was nowhere to be seen, had disappeared"),
    "asked": _words("asked, wondered, inquired, whispered"),
    "brought": _words("brought, fetched, carried in, found"),
    "began": _words("began, started"),
    "some": _words(
        """some, a few, many, plenty of, a bag of, a box of, a handful of, a basket of, a dozen, a pile of,
        two or three, lots of, a plate of, a bowl of, a sack of, ten"""
    ),
    "a_little": _words("some, a cup of, a glass of, a mug of, a bottle of, a sip of, a bit of, a jug of"),
    "tiny_thing": _words("a mouse, a cat, the wind, a fly, a moth, a spider, a beetle, a bird"),
    "animal_at_home": _words("a cat, a dog, a fly, a moth, a mouse, a frog, a kitten, a puppy"),
    "builder": _words("beaver, bird, spider, ant, bee, mole, squirrel, rabbit"),
    "lively": _words("big, small, noisy, happy, young, fat, tiny, lively, busy, quiet, pretty, hungry"),
    "kind_to": _words("kind, good, nice, sweet, generous, friendly"),
    "old": _words("an old, a tall, a crooked, a young, a thick, a thin, a lonely, a mossy"),
    "bag": _words("bag, box, basket, sack, pouch, tin, bucket, backpack"),
    "dusty": _words("an old, a big, a dusty, a broken, a heavy, a strange, a dark, a forgotten"),
    "how": _words("slowly, quietly, happily, with joy, with both hands, bite by bite, very quickly, very politely"),
    "surface": _words(
        "table, desk, shelf, windowsill, piano, chest, dresser, bench, stool, counter, nightstand, sideboard"
    ),
    "snapped": _words("shouted, yelled, cried, called, snapped, screamed, demanded, grumbled"),
    "angrily": _words("angrily, loudly, crossly, rudely, furiously, impatiently, with a frown, with a red face"),
    "moment": _words(
        "a moment, a while, a minute, a few seconds, two minutes, a long moment, some time, a little while"
    ),
}
