"""Define the class `Plot`, and the beats that many plots share.

A plot is a list of beats, the steps of a story; a beat is a tuple of variants. A story takes one variant of each beat, and
all variants of a beat have the same probability; the variant "" omits the beat. In a variant,
    {hero}         is the value of slot `hero`, drawn at its first mention from the slot's kind, a list of values in `words.py`;
    {hero.his}     is a form of this value, {hero.His} the form with a capital letter, {thing.a} the value with its article;
    [walked]       is a newly drawn word of list `walked`, [Walked] with a capital letter, [a trait] with its article;
    (this|that|)   is one of several texts, which may contain slots, lists and alternatives; here the last text is empty.
The variants must be written so that the text of a story determines all its choices; `tests/stories/test_stories.py` proves this
for all stories. Beats are joined by a space, or by an empty line if the variant begins with a pilcrow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

Beat = tuple[str, ...]


@dataclass(frozen=True)
class Plot:
    """Describe a plot: its beats (the steps of a story), and the slots for which values are drawn, such as the hero.

    The probability of the plot is proportional to `weight`. `slots` maps the name of each slot to a kind, such as "toy". A kind
    is the name of a list of possible values in `words.py`. Every plot has the slots `hero`, `thing` and `place`, whose values a
    user's request names. `asks` are phrases that say what happens, for requests such as "Tell me a story about Tom, who " +
    phrase.
    """

    name: str
    weight: float
    slots: dict[str, str]
    asks: tuple[str, ...]
    beats: tuple[Beat, ...]


def with_preface(plot: Plot) -> Plot:
    """Return the plot with a preface: a sentence at the beginning, which half of the plot's stories contain.

    The preface names the hero and says with one of the phrases `plot.asks` what will happen, to which thing and at which place.
    The requests on which a model is fine-tuned later contain the same phrases. So the model learns already in pretraining to
    write about the hero, the thing and the place that are named before a story.
    """
    preface = f"(This is|Here is|Meet) {{hero}}, who ({'|'.join(plot.asks)})."
    return replace(plot, beats=(("", preface), *plot.beats))


OPENING: Beat = (
    "Once upon a time, there was [a trait] {hero.boy} (named|called) {hero} with [hair] hair and [color] [clothes].",
    "Once upon a time, [a trait] {hero.boy} named {hero} lived in [a town] (town|village|valley|street).",
    "There once was [a trait] {hero.boy} called {hero}, who loved (to play [game]|[snack] and [drink]|stories about [dream]).",
    "{hero} was [a trait] {hero.boy} (of [age]|with [hair] hair) who (loved|liked|wanted) to play [game].",
    "In [a town] (town|village) lived [a trait] {hero.boy} with [hair] hair whose name was {hero}.",
    "{hero} was [age] years old, had [hair] hair and [loved] [snack] and [dream].",
    "This is the story of {hero}, [a trait] {hero.boy} who (always wore [color] [clothes]|could not live without [snack]).",
    "[A trait] {hero.boy} named {hero} lived [near] [old] [tree] with {hero.his} (cat|dog|fish|bird) [petname].",
)
DAY: Beat = (
    "One [weather] [time], {hero} [went] to {place}(| with {hero.his} {grown}).",
    "It was [a weather] [time], and {hero} was {place.in}(| with {hero.his} {grown}).",
    "On [a weather] [time], {hero} put on {hero.his} [color] [clothes] and [went] to {place}.",
    "One [time], {hero} had [some] [snack] and [a_little] [drink] and then [went] to {place}.",
    "{hero} could hardly wait for [weekday]. At last, {hero.he} was {place.in}.",
    "On [time], {hero} and {hero.his} {grown} [went] to {place}.",
    "After [number] (rainy|gray|stormy|long|foggy) days, {hero} finally [went] to {place}.",
    "It was [month], and one [weather] [time], {hero} [went] to {place}.",
)
SCENE: Beat = (
    "[Number] [flyers] [flew], and [a creature] (sat|slept|rested|hid) [near] [old] [tree].",
    "The sun (was shining|shone brightly|was warm), [number] [lively] [flyers] [flew], and the air smelled of [smell].",
    "The [flowers] were (in bloom|wide open|full of bees), the air smelled of [smell], and [flyers] [flew].",
    "{hero} ate [some] [snack], drank [a_little] [drink] and [hummed] [a nice] [tune].",
    "Nearby, {hero} [saw] [a creature], [number] [flyers] and some [color] [flowers].",
    "In {hero.his} [color] (bag|basket|backpack|sack), {hero} had [some] [snack], [a_little] [drink] and a book about [dream].",
    "One cloud looked like [a creature] and one like [dream], and the wind (was soft|was gentle|smelled of [smell]).",
    "{hero} [saw] [a creature] with [number] [color] spots and called it [petname].",
)
INSIDE: Beat = (
    "{hero} wore [color] [clothes] and ate [some] [snack] with [a_little] [drink].",
    "On the [surface] stood [a color] (cup|jug|mug|can) of [drink] and [a color] plate with [number] [snack].",
    "{hero} drew [number] [color] [dream], drank [a_little] [drink] and [hummed] [a nice] [tune].",
    "Outside, [number] [lively] [flyers] [flew], and it smelled of [smell].",
    "In the corner stood [dusty] [furniture] with [number] [color] [flowers] on it.",
    "At the window, {hero} counted [number] [lively] [flyers] and named one of them [petname].",
)
HOME_INSIDE: Beat = (
    "",
    "That (night|evening), {hero} dreamed of [number] [color] [dream] and [a nice] [creature].",
    "For (dinner|supper), {hero} had [meal], [some] [snack] and [a_little] [drink].",
    "At bedtime, {hero} felt [happy] and [feeling].",
    "Later, {hero} drew it all with [a color] (crayon|pencil|pen|brush), and [number] [flowers] around it.",
    "Before {hero} fell asleep, {hero.he} counted [number] [color] [dream] and [smiled] [happily].",
)
HOME: Beat = (
    *HOME_INSIDE,
    "On the way home, {hero} [hummed] [a nice] [tune] and counted [number] [flyers].",
    "When {hero} came home, there was (a big|a small|a full|a warm) plate of [meal] and [a_little] [drink].",
)
