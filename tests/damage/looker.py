"""A process that damages a store, looks at it, and says what came of it; again and again, until it dies of it.

    python -m tests.damage.looker SUBJECT FOLDER

Reads damages from standard input, a line each (``flip PLACE MASK`` or ``cut LENGTH``), and answers each with a line.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from consecution.errors import ConsecutionError
from tests.damage.subjects import SUBJECTS, Subject, make_anew

HANGS_AFTER_S = 20
SHOWN = 300


def damaged(whole: bytes, words: list[str]) -> bytes:
    if words[0] == "cut":
        return whole[: int(words[1])]
    place, mask = int(words[1]), int(words[2])
    return whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :]


def judge(subject: Subject, folder: Path, right: str) -> str:
    """harmless, noticed, wrong (another answer, and no error), or unclear (an error that is none of ours)."""
    signal.alarm(HANGS_AFTER_S)
    try:
        found = repr(subject.look(folder))
    except ConsecutionError as error:
        return f"noticed {type(error).__name__}: {error}"
    except Exception as error:
        return f"unclear {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    if found == right:
        return "harmless"
    differ = next((n for n, (a, b) in enumerate(zip(found, right, strict=False)) if a != b), 0)
    return f"wrong at {differ}: {found[max(0, differ - 60) : differ + 100]}"


def main() -> None:
    subject, folder = SUBJECTS[sys.argv[1]], Path(sys.argv[2])
    whole = make_anew(subject, folder)
    right = repr(subject.look(folder))
    others = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock.mdb"}
    print(len(whole), flush=True)
    for line in sys.stdin:
        for path, content in others.items():
            path.write_bytes(content)
        (folder / subject.file).write_bytes(damaged(whole, line.split()))
        (folder / "lock.mdb").unlink(missing_ok=True)
        print(judge(subject, folder, right).replace("\n", " ")[:SHOWN], flush=True)


if __name__ == "__main__":
    main()
