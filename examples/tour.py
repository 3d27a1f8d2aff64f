"""All that may stand in a pipeline, in one: what becomes of the words of a poem?

    poem | words | Filter(is_word) | Route([short, long], by=length) | number * 2, by initial | print

    short = Chunk(3) | phrase            long = Broadcast([loud, backwards])

A tour, in the order of ``build``:

- a function makes one item of each (``phrase``), a generator function makes many (``words``)
- ``Filter`` lets some items pass, ``Chunk`` gathers them in lists
- ``Route`` sends an item one way, ``Broadcast`` all ways, and what stands behind them is where ways merge
- ``node * 2`` is two replicas; with ``.by(key)`` one key always meets the same one, so it may count

    python examples/tour.py
    consecution plan examples/tour.py --robustness track --format mermaid
    consecution run examples/tour.py --robustness track

Nodes that hold something between items, as ``Chunk`` and ``Number`` do, would lose it with their worker.
So this is the one example that runs in ``track``, not in ``robust``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator

from consecution import Broadcast, Chunk, Filter, Map, Node, Pipeline, Producer, Route
from consecution.plan import describe

POEM = (
    "Tyger Tyger, burning bright,",
    "In the forests of the night;",
    "What immortal hand or eye,",
    "Could frame thy fearful symmetry?",
    "-- William Blake",
)


def words(line: str) -> Iterator[str]:
    for word in line.split():
        yield word.strip(",;?").lower()


def is_word(text: str) -> bool:
    return text.isalpha()


def length(word: str) -> str:
    """The name of the way to go."""
    return "short" if len(word) <= 4 else "long"


def phrase(words: list[str]) -> str:
    return " ".join(words)


def loud(word: str) -> str:
    return word.upper() + "!"


def backwards(word: str) -> str:
    return word[::-1]


def initial(text: str) -> str:
    return text[0].lower()


class Number(Node):
    """Numbers the texts that begin with the same letter."""

    def begin(self) -> None:
        self.met: Counter[str] = Counter()

    def process(self, text: str) -> None:
        letter = initial(text)
        self.met[letter] += 1
        self.push(f"{letter}{self.met[letter]}  {text}")


def build() -> Pipeline:
    return Pipeline(
        Producer(POEM, name="poem")
        | words
        | Filter(is_word)
        | Route([Chunk(3, name="short") | phrase, Broadcast([loud, backwards], name="long")], by=length)
        | (Number("number") * 2).by(initial)
        | Map(print)
    )


pipeline = build()


def main() -> int:
    parser = argparse.ArgumentParser(description="A tour of what may stand in a pipeline: its picture, and a run.")
    parser.add_argument("--mode", choices=("inline", "thread", "process"), default="process", help="how it runs")
    arguments = parser.parse_args()
    print(pipeline)
    print(describe(pipeline.plan(mode=arguments.mode, robustness="track")), end="\n\n")
    report = pipeline.run(mode=arguments.mode, robustness="track")
    print(f"\n{report}")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
