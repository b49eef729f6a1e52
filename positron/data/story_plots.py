"""The plots of the built-in stories, as data.

A plot is a list of beats; a beat is a tuple of variants, of which a story takes one, each with the same probability
("" leaves the beat out). In a variant,
    {hero}       is the value bound to slot `hero`, drawn from the slot's kind at its first mention;
    {hero.his}   is a form of it, {hero.His} the same with a capital letter;
    [walked]     is a fresh word of list `walked`, [Walked] with a capital letter.
Two variants of a beat never can read the same, so that a story's text tells all its choices. Beats are joined by a
space, or by an empty line where the variant begins with `|`.
"""

from __future__ import annotations

from dataclasses import dataclass

Beat = tuple[str, ...]


@dataclass(frozen=True)
class Plot:
    """`slots`: name -> kind. Every plot has a `hero`, a `thing` and a `place`: what a reader can ask for.

    `asks` says what happens, for requests: "Tell me a story about Tom, who " + ask.
    """

    name: str
    weight: float
    slots: dict[str, str]
    asks: tuple[str, ...]
    beats: tuple[Beat, ...]


OPENING: Beat = (
    "Once upon a time, there was a [trait] {hero.boy} named {hero}.",
    "Once upon a time, a [trait] {hero.boy} named {hero} lived in a [big] house.",
    "There once was a [trait] and [nice] {hero.boy} called {hero}.",
    "{hero} was a [trait] {hero.boy} who loved to play [game].",
    "In a [big] town lived a [trait] {hero.boy} whose name was {hero}.",
)
DAY: Beat = (
    "One [weather] [time], {hero} [walked] to {place}.",
    "One [weather] [time], {hero} and {hero.his} {grown} [walked] to {place}.",
    "It was a [weather] [time], and {hero} was {place.in}. The [sky] [did].",
    "On a [weather] [time], {hero} could not wait to be {place.in}.",
)
HOME: Beat = (
    "",
    "In the evening, {hero} told {hero.his} {grown} everything.",
    "On the way home, {hero} [smiled] and sang a [nice] song.",
    "That night, {hero} went to bed and felt [feeling].",
)

LOST = Plot(
    "lost",
    1.3,
    {
        "hero": "child",
        "thing": "toy",
        "place": "play_place",
        "grown": "grown",
        "friend": "child",
        "color": "color",
        "spot": "spot",
    },
    ("loses a {thing} {place.in}", "cannot find a {thing} {place.in}"),
    (
        OPENING,
        (
            "{hero.He} had {color.a} {thing} that {hero.he} took everywhere.",
            "{hero.His} favorite toy was {color.a} {thing}.",
            "For {hero.his} birthday, {hero} had got {color.a} {thing} from {hero.his} {grown}.",
            "More than anything, {hero.he} loved {hero.his} {color} {thing}.",
        ),
        DAY,
        (
            "{hero.He} played [game] for [minutes], and then the {thing} was gone.",
            "{hero.He} put the {thing} down to look at the [sky]. When {hero.he} turned around, it was gone.",
            "But after [minutes], the {color} {thing} was nowhere to be seen.",
            "Then the wind blew, and {hero} lost {hero.his} {thing}.",
        ),
        (
            '|"Oh no, where is my {thing}?" {hero} [sobbed].',
            '|"I have lost my {color} {thing}," {hero.he} [sobbed]. "I am so [sad]."',
            "|{hero} felt very [sad] and began to cry.",
            '|"My {thing} is gone," [sobbed] {hero}.',
        ),
        (
            "{hero.He} [searched] under the [big] bench, but it was not there.",
            "{hero.He} [searched] everywhere for [minutes].",
            "{hero.He} [searched] [slowly] around the [big] rocks and found nothing.",
            "",
        ),
        (
            'A {friend.boy} named {friend} saw {hero.him}. "Can I help you?" {friend.he} [said].',
            'Then {friend} came by. "Do not be [sad]," [said] {friend}. "We will look together."',
            '{hero.His} friend {friend} [walked] over. "Two can look better than one," {friend.he} [said].',
            'Just then, {friend} heard it all. "I am good at finding things," {friend.he} [said].',
        ),
        (
            "They [searched] [near] the {spot}, and there it was!",
            "{friend} [searched] [near] {spot.a} and saw something {color}. It was the {thing}!",
            "{friend} pointed at {spot.a}. The {color} {thing} was right [near] it!",
            "Together they [walked] to the {spot}, and the {thing} lay [near] it.",
        ),
        (
            '|"Thank you, {friend}!" {hero} [cheered]. "You are a [nice] friend."',
            "|{hero} [hugged] {friend} and was [happy] again.",
            '|"You found it!" [cheered] {hero}, and {hero.he} felt [feeling].',
            "|{hero} [smiled] and let {friend} play with the {thing} too.",
        ),
        HOME,
        (
            "From then on, {hero} always took good care of {hero.his} {color} {thing}.",
            "{hero} put the {color} {thing} on the shelf, where it was safe.",
            "And {hero} learned that a friend can help when something is lost.",
            "After that [time], {hero} and {friend} played with the {color} {thing} every day.",
        ),
    ),
)

QUARREL = Plot(
    "quarrel",
    1.1,
    {"hero": "child", "thing": "toy", "place": "play_place", "grown": "grown", "friend": "child", "color": "color"},
    ("quarrels over a {thing} {place.in}", "does not want to share a {thing} {place.in}"),
    (
        OPENING,
        (
            "{hero.His} best friend was {friend}, a [trait] {friend.boy}.",
            "{hero.He} had a friend named {friend}, and they often played [game].",
            "{friend} lived next door, and the two were best friends.",
            "Every day {hero.he} met {friend}, who was a [trait] {friend.boy}.",
        ),
        DAY,
        (
            "{friend} was there too. They found {color.a} {thing} on the ground.",
            "{friend} came along and brought {color.a} {thing}.",
            "There, {hero} and {friend} saw {color.a} {thing}, and both wanted it.",
            "{hero} brought {color.a} {thing}, and {friend} wanted to try it.",
        ),
        (
            '|"It is mine!" [cheered] {hero}. "No, it is mine!" [cheered] {friend}.',
            '|"Give me the {thing}!" {hero} [cheered]. {friend} held it tight and said no.',
            '|"I want to play with it first," [said] {hero}. "That is not fair," [sobbed] {friend}.',
            "|{hero} pulled on one side of the {thing}, and {friend} pulled on the other.",
        ),
        (
            "They pulled and pulled until the {thing} fell into the mud.",
            "Then the {color} {thing} made a loud noise and almost broke.",
            "{friend} got angry and [walked] away.",
            "They did not talk to each other for [minutes].",
        ),
        (
            "{hero} sat down alone and felt [sad].",
            "Now nobody had fun, and both of them were [sad].",
            "{hero} looked at the {thing}, but playing alone was no fun.",
            "The {thing} lay there, and {hero} was [sad].",
        ),
        (
            '{hero.His} {grown} saw it and [said], "A friend is worth more than a {thing}."',
            'Then {hero.his} {grown} came and [said], "You can take turns."',
            '"What happened?" asked {hero.his} {grown}. {hero} told {grown.him} [slowly] about the {thing}.',
            "",
        ),
        (
            '|"I am sorry, {friend}," [said] {hero}. "You can have the first turn."',
            '|{hero} [walked] to {friend}. "I am sorry," {hero.he} [said]. "Let us share."',
            '|"I was not [nice] to you," {hero} [said]. "Please play with me again."',
            '|{hero} gave the {color} {thing} to {friend}. "Here, you go first," {hero.he} [said].',
        ),
        (
            '{friend} [smiled]. "I am sorry too," {friend.he} [said].',
            "{friend} [hugged] {hero}, and they were friends again.",
            '"Thank you," [said] {friend}, and both of them [smiled].',
            "{friend} was [happy] and took {hero.his} hand.",
        ),
        (
            "They took turns with the {thing} and then played [game].",
            "They played with the {color} {thing} for [minutes].",
            "Soon they [cheered] and played together with the {thing}.",
            "",
        ),
        HOME,
        (
            "{hero} learned that sharing is more fun than fighting.",
            "From that day on, {hero} and {friend} shared everything.",
            "And the {color} {thing} belonged to both of them.",
            "After that, they never fought over a {thing} again.",
        ),
    ),
)

SKILL = Plot(
    "practice",
    1.0,
    {"hero": "child", "thing": "skill", "place": "practice_place", "grown": "grown", "friend": "child"},
    ("learns to {thing.do} {place.in}", "practices with a {thing} {place.in}"),
    (
        OPENING,
        (
            "{hero.He} wanted to learn to {thing.do}.",
            "{hero.His} biggest wish was to {thing.do}.",
            "{hero.His} {grown} could {thing.do}, and {hero} wanted to do it too.",
            "When {hero.he} saw {friend} {thing.do}, {hero.he} wanted to learn it too.",
        ),
        (
            "One [weather] [time], {hero.he} tried it {place.in}.",
            "So one [weather] [time], {hero} took the {thing} and began to practice {place.in}.",
            "On a [weather] [time], {hero.his} {grown} brought a {thing}, and they met {place.in}.",
            "One [time], {hero} stood {place.in} with the {thing} and felt [scared].",
        ),
        (
            "|But it was hard. {hero} [fell] again and again.",
            "|At first it went badly, and {hero.he} [fell] [number] times.",
            "|{hero.He} tried [slowly], but {hero.he} [fell].",
            "|After [minutes], {hero} [fell] and wanted to stop.",
        ),
        (
            '"I will never learn it," {hero.he} [sobbed].',
            '"{thing.Doing} is too hard for me," [sobbed] {hero}.',
            "{hero} was [sad] and sat down on the ground.",
            "Some children laughed, and {hero} felt [sad].",
        ),
        (
            '"Do not give up," [said] {hero.his} {grown}. "Try it once more."',
            '"I [fell] [number] times too," [said] {hero.his} {grown}. "You need to practice."',
            '{hero.His} {grown} [smiled]. "Every day a little bit," {grown.he} [said].',
            'Then {friend} came. "I will show you how," [said] {friend}.',
        ),
        (
            "|So {hero} practiced every [time], {place.in}.",
            "|The next day {hero} tried again, and the day after that, too.",
            "|For [number] weeks, {hero} took the {thing} and practiced {place.in}.",
            "|{hero} stood up and tried again [slowly].",
        ),
        (
            "",
            "Sometimes {hero.he} [fell], but {hero.he} always tried again.",
            "Each day, it went a little better.",
            "Even when {hero.he} was [tired], {hero.he} did not stop.",
        ),
        (
            "Then, one [weather] [time], {hero} could {thing.do}!",
            "And suddenly it worked! {hero} could {thing.do} all by {hero.himself}.",
            "At last, {hero.he} did it without any help.",
            "One [time], {friend} came to watch, and {hero} did not make one mistake.",
        ),
        (
            '|"Look at me!" {hero} [cheered]. "I can {thing.do}!"',
            '|"I did it!" [cheered] {hero}, and {hero.his} {grown} [smiled].',
            "|{hero.His} {grown} [hugged] {hero.him} and was very [happy].",
            '|"That was [nice]," [cheered] {hero.his} {grown}.',
        ),
        HOME,
        (
            "{hero} learned that practice makes everything easier.",
            "Now {hero} takes the {thing} out every day.",
            "And {hero} was [happy] that {hero.he} had not given up.",
            "Later, {hero} taught a [trait] friend to {thing.do}, too.",
        ),
    ),
)

ANIMAL = Plot(
    "animal",
    1.1,
    {"hero": "child", "thing": "comfort", "place": "wild_place", "grown": "grown", "animal": "animal"},
    ("helps an animal with a {thing} {place.in}", "brings a {thing} to an animal {place.in}"),
    (
        OPENING,
        (
            "{hero.He} loved all animals.",
            "{hero.He} liked to watch the [sky].",
            "Every [time], {hero.he} went for a walk.",
            "",
        ),
        (
            "One [weather] [time], {hero} heard [noise] {place.in}.",
            "One [weather] [time], {hero} [walked] along and stopped {place.in}.",
            "On a [weather] [time], {hero} and {hero.his} {grown} were {place.in}. The [sky] [did].",
            "One [time], {hero} was playing [game] {place.in}.",
        ),
        (
            "There sat {animal.a}. It was [tired] and could not walk.",
            "{hero.He} [searched] around and found {animal.a} with a hurt leg.",
            "On the ground lay {animal.a} that looked [scared].",
            "A [big] {animal} was stuck there and could not get out.",
        ),
        (
            '|"You poor {animal}," [said] {hero}. "I will help you."',
            '|"Do not be [scared], little {animal}," {hero.he} [said] [slowly].',
            '|"Oh dear, are you hurt?" {hero} [said].',
            '|{hero} knelt down and [said], "I am your friend."',
        ),
        (
            "{hero.He} [walked] home and came back with {thing.a}.",
            "{hero.He} had {thing.a} in {hero.his} bag and took it out.",
            "{hero.His} {grown} brought {thing.a}, and {hero} took it [slowly].",
            "Then {hero.he} remembered the {thing} that {hero.he} had with {hero.him}.",
        ),
        (
            "With the {thing}, {hero.he} helped the {animal} [slowly].",
            "{hero.He} [held] the {animal} [slowly] and gave it the {thing}.",
            "The {animal} sniffed at the {thing} and was not [scared] anymore.",
            "The {thing} was just what the {animal} needed.",
        ),
        (
            "|For [number] days, {hero} looked after the {animal}.",
            "|{hero} stayed with the {animal} for [minutes].",
            "|Every [time], {hero} came back and brought it food.",
            "|{hero.His} {grown} helped, and the {animal} slept for [minutes].",
        ),
        (
            "Soon the {animal} could run and jump again.",
            "Then, one [weather] [time], the {animal} was strong again.",
            "Little by little, the {animal} got better.",
            "At last, it stood up and looked at {hero}.",
        ),
        (
            '"Goodbye, little {animal}!" {hero} [cheered].',
            '"You are free now," [said] {hero} and [smiled].',
            "{hero} was [happy] and a little [sad] at the same time.",
            "The {animal} turned around once more, as if to say thank you.",
        ),
        HOME,
        (
            "And every [time] the {animal} came back to visit {hero}.",
            "{hero} kept the {thing} to remember the {animal}.",
            "{hero} learned that even a small {hero.boy} can be a big help.",
            "From then on, {hero} and the {animal} were friends.",
        ),
    ),
)

RAIN = Plot(
    "rain",
    0.9,
    {"hero": "child", "thing": "indoor", "place": "trip_place", "grown": "grown", "friend": "child"},
    (
        "cannot be {place.in} because of the rain and finds a {thing}",
        "has a rainy day with a {thing} instead of a day {place.in}",
    ),
    (
        OPENING,
        (
            "{hero.His} {grown} had promised to spend a day {place.in}.",
            "{hero} had waited [number] days to be {place.in}.",
            "Today, {hero} and {friend} wanted to be {place.in}.",
            "For weeks, {hero} had dreamed of a day {place.in}.",
        ),
        (
            "But that [time], dark clouds came, and it began to rain.",
            "But when {hero.he} woke up, the rain was falling on the roof.",
            "But the sky turned gray, and there was thunder.",
            "But it rained and rained, and the street was full of water.",
        ),
        (
            '|"Now we cannot go," {hero} [sobbed].',
            '|"I hate the rain," [sobbed] {hero} and looked out of the window.',
            "|{hero} was [sad] and did not want to play [game].",
            '|"It is not fair," [sobbed] {hero}. "I wanted to be {place.in}."',
        ),
        (
            '"Rain can be fun," [said] {hero.his} {grown}.',
            '{hero.His} {grown} [smiled]. "I have an idea," {grown.he} [said].',
            '"Let us see what we can find," [said] {hero.his} {grown} and opened a [big] box.',
            'Then {friend} knocked at the door, all wet. "Let us play inside," [said] {friend}.',
        ),
        (
            "Soon there was {thing.a} in the middle of the room.",
            "They went to the attic and found {thing.a}.",
            "On the table stood {thing.a}.",
            "Together they made {thing.a} for the whole family.",
        ),
        (
            "|{hero} had never seen such a [nice] {thing}.",
            "|The {thing} was so [nice] that {hero} forgot the rain.",
            "|For [minutes], {hero} and {hero.his} {grown} were busy with the {thing}.",
            "|{hero} began [slowly], but soon {hero.he} was full of ideas.",
        ),
        (
            "",
            "They [cheered] and had [treat].",
            "Outside there was [noise], but nobody was [scared].",
            "They played that they were {place.in}.",
        ),
        (
            '"This is the best {thing} in the world!" {hero} [cheered].',
            '"I like rainy days," [said] {hero} and [smiled].',
            '"Can we do this again tomorrow?" asked {hero}.',
            "{hero} [hugged] {hero.his} {grown} and felt [feeling].",
        ),
        (
            "|When the rain stopped, {hero} did not even notice.",
            "|Then the sun came out, and the [sky] [did] again.",
            "|In the evening, there was a rainbow over the house.",
            "|The rain stopped, but {hero} wanted to stay with the {thing}.",
        ),
        (
            "The next [weather] day, they were {place.in} after all.",
            "And the {thing} became {hero.his} favorite thing to do.",
            "{hero} learned that a [nice] day does not need the sun.",
            "Since then, {hero} is [happy] when it rains.",
        ),
    ),
)

BIRTHDAY = Plot(
    "birthday",
    1.0,
    {"hero": "child", "thing": "gift", "place": "hiding_place", "grown": "grown", "friend": "child", "color": "color"},
    ("hides a {thing} {place.in} for a birthday", "has a birthday surprise, a {thing} hidden {place.in}"),
    (
        OPENING,
        (
            "Tomorrow was the birthday of {hero.his} {grown}.",
            "{hero.His} {grown} had a birthday soon.",
            "In [number] days, it was the birthday of {hero.his} {grown}.",
            "It was almost time for the birthday of {hero.his} {grown}.",
        ),
        (
            '"I want to make a [nice] surprise," {hero.he} [said] to {friend}.',
            "{hero} wanted to give {grown.him} something [nice].",
            '"What can I give {grown.him}?" {hero} asked {friend}.',
            "{hero} thought about it for [minutes].",
        ),
        (
            "|{hero.He} decided to make {color.a} {thing}.",
            "|With {friend}, {hero.he} made {color.a} {thing}.",
            "|{friend} helped {hero.him} to find {color.a} {thing} with [number] stars on it.",
            "|{hero.He} used all {hero.his} coins for {color.a} {thing}.",
        ),
        (
            "They worked [slowly] for [minutes].",
            "It was hard work, but the {thing} looked [nice].",
            "When it was done, {hero} was [happy] with it.",
            "",
        ),
        (
            "Then {hero} hid the {thing} {place.in}.",
            "To keep it secret, {hero.he} put the {thing} {place.in}.",
            '"Nobody will look {place.in}," [said] {hero} and hid it there.',
            "{hero} [walked] on tiptoe and hid it {place.in}.",
        ),
        (
            '|"What are you doing {place.in}?" asked {hero.his} {grown}.',
            "|Once, {hero.his} {grown} almost found it.",
            "|That [time], {hero} could hardly sleep.",
            "|{hero} told nobody but {friend} and felt [scared] that somebody would find it.",
        ),
        (
            '"Nothing at all," [said] {hero} and [smiled].',
            "{hero} kept very quiet for [minutes].",
            "",
        ),
        (
            "|On the birthday, {hero} [walked] in with the {color} {thing}.",
            "|The next [weather] [time], everybody came, and {hero} brought the {thing}.",
            "|At last the [time] came. {hero} took out the {color} {thing}.",
            "|On the [weather] birthday [time], {hero} jumped out with the {thing}.",
        ),
        (
            '"Surprise! Happy birthday!" {hero} [cheered].',
            '"This {thing} is for you," [said] {hero}.',
            '"Close your eyes," {hero} [said] and gave {grown.him} the {thing}.',
            '"Happy birthday, dear {grown}!" [cheered] {hero} and {friend}.',
        ),
        (
            "{hero.His} {grown} was so [happy] that {grown.he} [hugged] {hero.him}.",
            '"What a [nice] {thing}!" [cheered] {hero.his} {grown}.',
            '"I have never had such a [nice] {thing}," [said] {hero.his} {grown}.',
            "{hero.His} {grown} [smiled] and had tears in {grown.his} eyes.",
        ),
        (
            "Then they all had [treat] and played [game].",
            "Giving made {hero} as [happy] as getting.",
            "The {color} {thing} has had the best place in the house ever since.",
            "And {hero} felt [feeling].",
        ),
    ),
)

BRAVE = Plot(
    "brave",
    1.0,
    {"hero": "child", "thing": "light", "place": "dark_place", "grown": "grown", "friend": "child", "animal": "animal"},
    ("is afraid {place.in} but has a {thing}", "is brave {place.in} with a {thing}"),
    (
        OPENING,
        (
            "But {hero.he} was afraid of the dark.",
            "Only one thing made {hero.him} [scared]: the dark.",
            "{hero.He} was never [scared] when the sun was out, but the dark was different.",
            "At night, {hero.he} often felt [scared].",
        ),
        (
            "One [weather] [time], {hero} and {friend} played [game].",
            "One [time], {hero} was alone at home.",
            "One [weather] [time], {hero} visited {hero.his} {grown}.",
            "It was a [weather] [time], and {hero} could not sleep.",
        ),
        (
            "Then they heard [noise] {place.in}.",
            "All at once, there was [noise] {place.in}.",
            "From far away came [noise]. Something was {place.in}!",
            "Suddenly {hero} heard [noise] {place.in}.",
        ),
        (
            '|"Did you hear that?" {hero} [said]. {hero.His} knees were shaking.',
            '|"It must be a monster," [sobbed] {hero}.',
            '|"I do not dare to go there," {hero.he} [sobbed].',
            "|{hero} was so [scared] that {hero.he} could not move.",
        ),
        (
            '"You are braver than you think," [said] {hero.his} {grown}.',
            '"Somebody may need help," [said] {friend}.',
            "{hero} counted to [number] and took a deep breath.",
            '"I will be brave," {hero} [said] to {hero.himself}.',
        ),
        (
            "|{hero.He} took {hero.his} {thing} and went on [slowly].",
            "|With {thing.a} in {hero.his} hand, {hero} [walked] in.",
            "|{hero} held {hero.his} {thing} tight. It helped a little.",
            "|{hero.His} {grown} gave {hero.him} {thing.a}, and that made {hero.him} brave.",
        ),
        (
            "It was very dark {place.in}, and there was [noise] again.",
            "{hero.He} [searched] into every corner.",
            "Step by step, {hero.he} went on, as [slowly] as {hero.he} could.",
            "",
        ),
        (
            "And what did {hero.he} see? It was only {animal.a}!",
            "Two eyes looked at {hero.him}. They belonged to {animal.a}.",
            "There, in a corner, sat {animal.a} and looked [scared].",
            "Then something moved. It was {animal.a} that had lost its way.",
        ),
        (
            '|"You were more [scared] than I was," {hero} [cheered].',
            '|"Hello, little {animal}," [said] {hero} and [smiled].',
            '|"So you are the monster!" [cheered] {hero}.',
            "|{hero} [held] the {animal} [slowly] and took it outside.",
        ),
        (
            "The {animal} was [happy] and stayed close to {hero}.",
            "{hero} gave it [treat], and it ate everything.",
            "Everybody [cheered] when they saw the {animal}.",
            "",
        ),
        HOME,
        (
            "{hero} was never afraid {place.in} again.",
            "And {hero} learned that being brave means going on when you are [scared].",
            "The {thing} stood next to {hero.his} bed, but {hero.he} did not need it anymore.",
            "From that [time] on, the dark was only the dark.",
        ),
    ),
)

SHARE = Plot(
    "share",
    1.0,
    {"hero": "child", "thing": "food", "place": "eat_place", "grown": "grown", "friend": "child"},
    ("shares {thing.a} {place.in}", "gives away half of {thing.a} {place.in}"),
    (
        OPENING,
        (
            "{hero.His} {grown} gave {hero.him} {thing.a} for the way.",
            "One [time], {hero.his} {grown} packed {thing.a} in {hero.his} bag.",
            "{hero.He} had got {thing.a}, which was {hero.his} favorite food.",
            "{hero.He} had waited the whole [time] to eat {hero.his} {thing}.",
        ),
        (
            "It was a [weather] [time], and {hero} sat down {place.in}.",
            "{hero} found a [nice] spot {place.in}. The [sky] [did].",
            "At noon, {hero} was {place.in} and felt hungry.",
            "{hero} [walked] for [minutes] and then rested {place.in}.",
        ),
        (
            "|Next to {hero.him} sat a {friend.boy} named {friend}, who had nothing to eat.",
            "|Then {hero} saw {friend}, who looked [sad].",
            "|A [trait] {friend.boy} named {friend} watched the {thing} with big eyes.",
            "|{friend} was there too, and {friend.his} lunch had fallen into the mud.",
        ),
        (
            '"Are you hungry?" asked {hero}.',
            '"Why are you so [sad]?" {hero} asked.',
            '"Is something wrong?" {hero} [said].',
            "{hero} looked at {friend} and then at the {thing}.",
        ),
        (
            '"I have not eaten all day," [sobbed] {friend}.',
            '"I forgot my lunch at home," {friend} [said].',
            '"I am so [tired]," [sobbed] {friend}.',
            "{friend} nodded [slowly] and said nothing.",
        ),
        (
            "|{hero} thought about it. The {thing} was so [nice]!",
            "|{hero} really wanted to eat the {thing} alone.",
            "|For a moment, {hero} did not know what to do.",
            "|{hero} remembered what {hero.his} {grown} had said about sharing.",
        ),
        (
            "Then {hero.he} broke the {thing} in two and gave {friend} one half.",
            'Then {hero.he} [smiled]. "Half of the {thing} is for you," {hero.he} [said].',
            '"Let us share my {thing}," [said] {hero}.',
            '"Here, take some of my {thing}," {hero.he} [said] and gave it to {friend}.',
        ),
        (
            '"Thank you! This {thing} is [nice]," [cheered] {friend}.',
            '{friend} ate [slowly] and was [happy]. "Thank you," {friend.he} [said].',
            '"You are so [nice] to me," {friend} [said].',
            "{friend} [smiled] and was not [sad] anymore.",
        ),
        (
            "After the meal, they played [game] for [minutes].",
            "They talked and [cheered] until it was late.",
            "Then {friend} told a funny story, and they both [cheered].",
            "",
        ),
        (
            "|The next day, {friend} brought [treat] for {hero}.",
            "|[Number] days later, {friend} shared [treat] with {hero}.",
            "|And the next time, {friend} had [treat] and gave half of it to {hero}.",
            "",
        ),
        (
            "{hero} learned that half of {thing.a} with a friend is better than a whole one alone.",
            "Since then, {hero} and {friend} meet {place.in} and share everything.",
            "And {hero} felt [feeling], with only half of {thing.a}.",
            "{hero.His} {grown} was very [happy] to hear about it.",
        ),
    ),
)

BUILD = Plot(
    "build",
    1.0,
    {"hero": "child", "thing": "building", "place": "build_place", "grown": "grown", "friend": "child"},
    ("builds {thing.a} {place.in}", "makes {thing.a} with a friend {place.in}"),
    (
        OPENING,
        (
            "{hero.He} loved to build things with {friend}.",
            "One [weather] [time], {hero.he} had a [nice] idea.",
            "{hero.He} dreamed of building something [big].",
            "{hero.His} friend {friend} was good with tools.",
        ),
        (
            '"Let us build {thing.a}!" {hero} [cheered].',
            '"I want to build {thing.a}," {hero.he} [said] to {friend}.',
            "{hero} and {friend} wanted to build {thing.a}.",
            '"We can make the best {thing} of all," [said] {friend}.',
        ),
        (
            "They [walked] around and looked for [stuff].",
            "So the two met {place.in} with many [stuff].",
            "{hero.His} {grown} gave them some [stuff].",
            "They carried [stuff] for [minutes], until they were [tired].",
        ),
        (
            "|{place.In} they [built] everything together [slowly].",
            "|{hero} [built] the [stuff] {place.in}, and {friend} [built] the rest.",
            "|First they [built] the [stuff] {place.in}. It took [minutes].",
            "|They worked {place.in} for [minutes] and sang.",
        ),
        (
            "But then the {thing} [broke], and everything came down.",
            "But a strong wind came, and the {thing} [broke].",
            "But it was not strong enough. The {thing} [broke] [number] times.",
            "But {hero} moved too fast, and the {thing} [broke].",
        ),
        (
            '"All our work is gone," [sobbed] {hero}.',
            '"Now it is broken," {friend} [sobbed].',
            "{hero} was [sad] and kicked a stone.",
            "They looked at the {thing} and felt [sad].",
        ),
        (
            '|"We can do it again, and better," [said] {friend}.',
            '|{hero.His} {grown} [smiled]. "Start with a strong bottom," {grown.he} [said].',
            '|"Let us try once more," [said] {hero}.',
            "|They sat down, had [treat], and made a new plan.",
        ),
        (
            "This time they [built] the [stuff] more [slowly].",
            "They put [big] [stuff] at the bottom and small ones on top.",
            "{friend} held it while {hero} worked [slowly].",
            "They helped each other, and nobody was [sad] anymore.",
        ),
        (
            "After [minutes], the {thing} was done.",
            "And this time, the {thing} stood {place.in} and did not fall.",
            "At last they had a [nice] {thing}.",
            "In the end, it was the best {thing} {place.in}.",
        ),
        (
            '|"Hooray!" [cheered] {hero} and {friend}.',
            '|"We did it together," [said] {hero} and [smiled].',
            '|{hero.His} {grown} came to see it. "What a [nice] {thing}," {grown.he} [said].',
            "|{hero} [hugged] {friend} and was [happy].",
        ),
        (
            "{hero} learned that you can always try again.",
            "They played at the {thing} until the stars came out.",
            "And when it rained, the {thing} still stood {place.in}.",
            "Then {hero} and {friend} gave the {thing} a [nice] name.",
        ),
    ),
)

PLANT = Plot(
    "plant",
    0.9,
    {"hero": "child", "thing": "plant", "place": "garden_place", "grown": "grown", "color": "color"},
    ("grows {thing.a} {place.in}", "plants a seed {place.in} and waits for {thing.a}"),
    (
        OPENING,
        (
            "{hero.His} {grown} gave {hero.him} a [big] seed.",
            "One [weather] [time], {hero.he} found a [big] seed.",
            "For {hero.his} birthday, {hero.he} got a seed in {color.a} bag.",
            "One [time], the wind blew a seed to {hero.his} window.",
        ),
        (
            '"What will it be?" {hero} asked {hero.his} {grown}. "{thing.A}," {grown.he} [said].',
            '"If you are patient, it will become {thing.a}," [said] {hero.his} {grown}.',
            '"This will be {thing.a}," [said] {hero.his} {grown} and [smiled].',
            "{hero} wanted it to become {thing.a}.",
        ),
        (
            "|So {hero} dug a hole {place.in} and put the seed in [slowly].",
            "|{hero} planted it {place.in} and gave it water.",
            "|They [walked] outside and planted the seed {place.in}.",
            "|{hero} took {color.a} can and planted the seed {place.in}.",
        ),
        (
            "Every [time], {hero.he} gave it some water and sang to it.",
            "{hero} watched it for [minutes] each day.",
            "The next [time], {hero.he} [walked] there to look at it.",
            "{hero.He} put [number] stones around it so that nobody would step on it.",
        ),
        (
            "But nothing happened for [number] days.",
            "But there was only earth, and {hero} was [sad].",
            "But nothing came out of the ground.",
            "But the earth stayed brown and bare.",
        ),
        (
            '|"Why does it not grow?" {hero} [sobbed].',
            '|"My {thing} will never come," [sobbed] {hero}.',
            "|{hero} was [sad] and wanted to dig it up.",
            '|"Maybe it is asleep," [said] {hero}.',
        ),
        (
            '"Good things need time," [said] {hero.his} {grown}.',
            '{hero.His} {grown} [said], "Wait a little longer."',
            '"It is working under the ground, where you cannot see it," [said] {hero.his} {grown}.',
            "",
        ),
        (
            "|Then, one [weather] [time], {hero} saw [grew].",
            "|After [number] weeks, there was [grew].",
            "|And one [time], [grew] came out of the earth.",
            "|{hero} did not give up, and at last there was [grew].",
        ),
        (
            '"It is growing!" {hero} [cheered].',
            "{hero} was so [happy] that {hero.he} danced {place.in}.",
            '"Hello, little {thing}," [said] {hero} [slowly].',
            "{hero} [hugged] {hero.his} {grown} and [smiled].",
        ),
        (
            "It grew and grew, until it was taller than {hero}.",
            "The [sky] [did] around it.",
            "Soon the {thing} was the most [nice] one {place.in}.",
            "In the summer, it was a [big] {thing}.",
        ),
        HOME,
        (
            "And {hero} kept [number] seeds of the {thing} for the next year.",
            "{hero} learned to wait for good things.",
            "Everybody who came by [smiled] at the {thing}.",
            "Now {hero} has a whole row of them {place.in}.",
        ),
    ),
)

HONEST = Plot(
    "honest",
    0.9,
    {"hero": "child", "thing": "fragile", "place": "room", "grown": "grown", "friend": "child", "color": "color"},
    ("breaks {thing.a} {place.in} and tells the truth", "has an accident with {thing.a} {place.in}"),
    (
        OPENING,
        (
            "{hero.His} {grown} had {color.a} {thing}, which was very old.",
            "In the house there was {color.a} {thing} that nobody was allowed to touch.",
            "{hero.His} {grown} loved {grown.his} {color} {thing}.",
            "There was {color.a} {thing} that {hero.his} {grown} liked best of all.",
        ),
        (
            "One [weather] [time], {hero} and {friend} played [game] {place.in}.",
            "One [time], {hero} [walked] around {place.in} and did not look.",
            "On a [weather] [time], {hero} danced {place.in}.",
            "It was raining, so {hero} threw a ball {place.in}.",
        ),
        (
            "There was a crash. The {thing} was broken!",
            "{hero.His} arm hit the {thing}, and it broke into [number] pieces.",
            "Then the {color} {thing} fell down and broke.",
            "All at once, there was [noise], and the {thing} was in pieces.",
        ),
        (
            '|"Oh no," {hero} [sobbed]. "What have I done?"',
            "|{hero} was very [scared].",
            '|"Nobody must know," {hero} [said].',
            "|{hero} stood still for a moment and felt [sad].",
        ),
        (
            "{hero.He} hid the pieces [near] the [big] sofa.",
            "{hero.He} thought, maybe nobody would see it.",
            '"You can say that it was the cat," [said] {friend}.',
            "{hero.He} wanted to run away.",
        ),
        (
            "|In the evening, {hero.his} {grown} came home and [searched] around.",
            "|Soon {hero.his} {grown} came and saw that something was wrong.",
            "|After [minutes], {hero.his} {grown} came in.",
            "|Then the door opened, and there was {hero.his} {grown}.",
        ),
        (
            '"Where is my {thing}?" asked {hero.his} {grown}.',
            '"What happened {place.in}?" {grown.he} asked.',
            "{hero.His} heart was beating fast.",
            "{hero} looked at {hero.his} shoes.",
        ),
        (
            '"I broke your {thing}," [sobbed] {hero}. "I am sorry."',
            '"It was me," {hero.he} [said] [slowly]. "I am so sorry."',
            "{hero} told {grown.him} the truth and began to cry.",
            '"I have to tell you something," [said] {hero} and showed {grown.him} the pieces.',
        ),
        (
            '|"Thank you for the truth," [said] {hero.his} {grown}.',
            "|{hero.His} {grown} was [sad] at first, but then {grown.he} [smiled].",
            '|"A {thing} can be mended," {grown.he} [said]. "I am [happy] that you told me."',
            "|{hero.His} {grown} [hugged] {hero.him} and was not angry.",
        ),
        (
            "Together they put the {color} pieces back in place [slowly].",
            "{hero} helped to clean up {place.in}.",
            "They glued the {thing} for [minutes] and had [treat].",
            "",
        ),
        (
            "{hero} learned that the truth makes you feel [feeling].",
            "After that, {hero} always told the truth.",
            "The {thing} still has a crack, and {hero} is careful {place.in}.",
            "And {hero} never played [game] {place.in} again.",
        ),
    ),
)

PLOTS = (LOST, QUARREL, SKILL, ANIMAL, RAIN, BIRTHDAY, BRAVE, SHARE, BUILD, PLANT, HONEST)
