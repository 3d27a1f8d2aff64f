"""What most pipelines are made of, in one: what becomes of the words of a poem?

    poem | words | Filter(is_word) | Route([short, long], by=length) | number * 2 | print

    short = Chunk(3) | phrase            long = Broadcast([loud, backwards])

A tour, in the order of ``build``:

- a function makes one item of each (``phrase``), a generator function makes many (``words``)
- ``Filter`` lets some items pass, ``Chunk`` gathers them in lists
- ``Route`` sends an item one way, ``Broadcast`` all ways, and what stands behind them is where ways merge
- ``node * 2`` is two replicas; those of a ``KeyedNode`` share its keys, and a key always meets the same one

    python examples/tour.py
    consecution plan examples/tour.py --format mermaid
    consecution run examples/tour.py

``Chunk`` and ``Number`` hold something between items. Both are durable: what they hold is on disk with the news
which items are part of it, so a worker that dies takes nothing along and counts nothing twice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from consecution import Broadcast, Chunk, Filter, KeyedNode, Map, Pipeline, Producer, Route
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


class Number(KeyedNode):
    """Numbers the texts that begin with the same letter. The state of a letter is how many there were."""

    def initial_state(self) -> int:
        return 0

    def key(self, text: str) -> str:
        return text[0].lower()

    def process(self, text: str) -> None:
        self.state = self.state + 1
        self.push(f"{self.key(text)}{self.state}  {text}")


def build() -> Pipeline:
    return Pipeline(
        Producer(POEM, name="poem")
        | words
        | Filter(is_word)
        | Route([Chunk(3, name="short") | phrase, Broadcast([loud, backwards], name="long")], by=length)
        | Number("number") * 2
        | Map(print)
    )


pipeline = build()


def main() -> int:
    parser = argparse.ArgumentParser(description="A tour of what may stand in a pipeline: its picture, and a run.")
    parser.add_argument("--mode", choices=("inline", "thread", "process"), default="process", help="how it runs")
    arguments = parser.parse_args()
    print(pipeline)
    print(describe(pipeline.plan(mode=arguments.mode)), end="\n\n")
    report = pipeline.run(mode=arguments.mode)
    print(f"\n{report}")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
