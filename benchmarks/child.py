"""One run of one contestant, in this process: ``python -m benchmarks.child QUESTION CONTESTANT SIZE [OLD_ROOT]``."""

from __future__ import annotations

import importlib
import json
import sys


def main() -> None:
    question, contestant, size, old_root = sys.argv[1:5]
    if old_root:
        sys.path.insert(0, old_root)
    asked = importlib.import_module(f"benchmarks.{question}").QUESTION
    outcome = asked.contestants[contestant](int(size))
    print(json.dumps({"seconds": outcome.seconds, "answer": outcome.answer}))


if __name__ == "__main__":
    main()
