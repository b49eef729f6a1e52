"""Compute the words that may follow the beginning of a story, with their exact probabilities.

A *word* is white space followed by other characters, including punctuation. A story is a sequence of such words; only its
first word has no white space. `Following` is a state of the grammar between two words. The beginning of a story usually
has several possible states, because some choices, such as the plot, become known only from words that come later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from positron.stories.grammar import GRAMMAR, Grammar, Node, Pick, Slot, Text
from positron.stories.plots import Plot

Group = Literal["sentence", "alternative", "list word", "first mention", "later mention", "pronoun", "end"]
_PRONOUNS = {"he", "his", "him", "himself", "boy", "call"}  # forms that do not name the value


class Rule(NamedTuple):
    """Name the grammar rule that wrote a piece of text, and the group of rules to which it belongs.

    If `group` is "list word", `name` is the name of the word list. If it is "first mention", "later mention" or "pronoun",
    `name` is the name of the slot, such as hero. Otherwise `name` is equal to `group`.
    """

    group: Group
    name: str


class Piece(NamedTuple):
    """Hold a piece of text that one rule of the grammar wrote: a part of a word, a word, or several words."""

    text: str
    rule: Rule


_SENTENCE, _ALTERNATIVE, END = Rule("sentence", "sentence"), Rule("alternative", "alternative"), Rule("end", "end")


@dataclass(frozen=True, eq=False)
class _Frame:
    """Hold what is left to write of a sequence of nodes. A node is a fixed text, a slot or a choice (see `grammar.py`).

    Frames form a stack, like the frames of function calls. `nodes` are the remaining nodes. `rule` is the grammar rule that is
    reported for a fixed text in `nodes`; a slot or a choice has a rule of its own. When all nodes are written, writing
    continues with the frame below, `after`.
    """

    nodes: tuple[Node, ...]
    rule: Rule
    after: _Frame | None


@dataclass(frozen=True, eq=False)
class Following:
    """Hold a state of the grammar between two words: the choices so far, and what is not written yet."""

    plot: Plot
    bound: tuple[tuple[str, str], ...]  # slot and value, in the order in which they were drawn
    named: frozenset[str]  # slots that the text has mentioned by their value, not only by a pronoun
    rest: Piece | None  # the remaining words of a text that contains several words
    frame: _Frame | None  # what is left to write after `rest`; None at the end of the story


class Word(NamedTuple):
    """Hold a possible next word, its probability, and the state after it.

    A word without `pieces` stands for the end of the story. Its `after` is None.
    """

    pieces: tuple[Piece, ...]
    p: float
    after: Following | None

    @property
    def text(self) -> str:
        """Return the text of the word."""
        return "".join(piece.text for piece in self.pieces)


def first_words(grammar: Grammar = GRAMMAR) -> Iterator[Word]:
    """Yield the words that may begin a story. Their probabilities add up to 1.

    If the grammar can produce the same word in several ways, the word is yielded once for each way.
    """
    for name, bits in zip(grammar.plot_choice.options, grammar.plot_choice.bits, strict=True):
        start = Following(grammar.plots[name], (), frozenset(), None, _Frame(grammar.beats[name], _SENTENCE, None))
        for word in next_words(start, grammar):
            first = word.pieces[0]
            pieces = (first._replace(text=first.text[1:]), *word.pieces[1:])  # a beat begins with a space
            yield Word(tuple(piece for piece in pieces if piece.text), word.p * 2**-bits, word.after)


def next_words(state: Following, grammar: Grammar = GRAMMAR) -> Iterator[Word]:
    """Yield the words that may come next. Several words may have the same text; all probabilities add up to 1.

    After the last word of the story, yields one `Word` with empty `pieces`, which stands for the end.
    """
    todo: list[tuple[tuple[Piece, ...], bool, float, Following]] = [((), False, 1.0, state)]
    while todo:
        pieces, has_begun, p, at = todo.pop()
        if at.rest is not None:
            end = _end_of_word(at.rest.text, has_begun)
            read, left = at.rest.text[:end], at.rest.text[end:]
            rest = at.rest._replace(text=left) if left else None
            then = Following(at.plot, at.bound, at.named, rest, at.frame)
            pieces = (*pieces, at.rest._replace(text=read))
            if left:
                yield Word(pieces, p, then)
            else:
                todo.append((pieces, has_begun or not read.isspace(), p, then))
        elif at.frame is None:
            yield Word(pieces, p, at if pieces else None)
        elif has_begun and _begins_with_space(at.frame):
            yield Word(pieces, p, at)
        else:
            todo += [(pieces, has_begun, p * share, then) for share, then in _steps(at, at.frame, grammar)]


def _end_of_word(text: str, has_begun: bool) -> int:
    """Return the position in `text` at which the current word ends.

    A word is white space followed by other characters, so it ends at the first white space after such a character. If there is
    no such white space, the result is the length of `text`. `has_begun`: true if the earlier text of the word already has a
    character that is not white space.
    """
    for i, character in enumerate(text):
        if not character.isspace():
            has_begun = True
        elif has_begun:
            return i
    return len(text)


def _begins_with_space(frame: _Frame | None) -> bool:
    """Tell whether every text that can come next in the story begins with white space.

    `frame` holds what is left to write of the story (see `_Frame`), or is None if the story is complete. The result is True if
    the story is complete, or if it can end next without further text. The result is False if the next text is the value of a
    slot, or if it comes from a choice with an option that begins with a slot or another choice.
    """
    while frame is not None:
        if not frame.nodes:
            frame = frame.after
            continue
        match frame.nodes[0]:
            case Text(text):
                return text[:1].isspace()
            case Slot():
                return False
            case Pick(options=options):
                first = [option[0] for option in options if option]
                if not all(isinstance(node, Text) and node.text[:1].isspace() for node in first):
                    return False
                if len(first) == len(options):
                    return True
                frame = _Frame(frame.nodes[1:], frame.rule, frame.after)
    return True


def _steps(at: Following, frame: _Frame, grammar: Grammar) -> Iterator[tuple[float, Following]]:
    """Yield the states that may come after the state `at`, as pairs (probability, state).

    `frame` is `at.frame`, the top of the stack of frames (see `_Frame`). Its nodes are the next parts of the story; a node is a
    fixed text, a slot or a choice. The function processes the first node of `frame`. If this node is a choice, or a slot
    without a value, each option gives a state. Otherwise, there is one state, with probability 1. If `frame` has no nodes, the
    only state is `at` without this frame.
    """
    if not frame.nodes:
        yield 1.0, Following(at.plot, at.bound, at.named, None, frame.after)
        return
    after = _Frame(frame.nodes[1:], frame.rule, frame.after) if len(frame.nodes) > 1 else frame.after
    match frame.nodes[0]:
        case Text(text):
            rest = Piece(text, frame.rule) if text else None
            yield 1.0, Following(at.plot, at.bound, at.named, rest, after)
        case Slot(name=name) as slot:
            known = dict(at.bound)
            if name in known:
                yield 1.0, _spelled(at, slot, known[name], at.bound, after, grammar)
                return
            choice = grammar.slot_choice(at.plot, name, known)
            for value, bits in zip(choice.options, choice.bits, strict=True):
                yield 2**-bits, _spelled(at, slot, value, (*at.bound, (name, value)), after, grammar)
        case Pick(name=name, choice=choice, options=options):
            rule = {"beat": _SENTENCE, "or": _ALTERNATIVE}.get(name) or Rule("list word", name)
            for option, bits in zip(options, choice.bits, strict=True):
                frame_of_option = _Frame(option, rule, after) if option else after
                yield 2**-bits, Following(at.plot, at.bound, at.named, None, frame_of_option)


def _spelled(
    at: Following, slot: Slot, value: str, bound: tuple[tuple[str, str], ...], after: _Frame | None, grammar: Grammar
) -> Following:
    """Return the state that follows the state `at` if the next text of the story is the value of a slot.

    `value` is the value of `slot`; it is written in the form `slot.form`. `bound` maps the slots of the returned state to their
    values. `after` is the frame with what is left to write after this text; None means that nothing is left.
    """
    if slot.form in _PRONOUNS:
        group: Group = "pronoun"
    else:
        group = "later mention" if slot.name in at.named else "first mention"
    named = at.named if group == "pronoun" else at.named | {slot.name}
    rest = Piece(grammar.spell(at.plot, slot, value), Rule(group, slot.name))
    return Following(at.plot, bound, named, rest, after)
