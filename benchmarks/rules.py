"""Speed and memory of the rules on long documents: python benchmarks/rules.py [MEGABYTES].

For every rule and kind of text: MB/s on one core, the ratio of times when the length doubles (2 is linear), and the memory that
a document of the full length takes beyond itself. Each measurement is a process of its own, so that memory is that of one rule.
"""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tasks.data.filters.batch import TextBatch
from tasks.data.filters.pii import score_pii
from tasks.data.filters.statistics.gopher_quality import GopherQualityScorer, score_gopher_quality
from tasks.data.filters.statistics.gopher_repetition import GopherRepetitionScorer, score_gopher_repetition
from tasks.data.filters.statistics.repetition import RepetitionScorer, score_repetition
from tasks.data.filters.statistics.word_frequency import score_word_frequency

RULES: dict[str, Callable[[TextBatch], object]] = {
    "repetition": lambda batch: score_repetition(batch, RepetitionScorer()),
    "gopher_repetition": lambda batch: score_gopher_repetition(batch, GopherRepetitionScorer()),
    "gopher_quality": lambda batch: score_gopher_quality(batch, GopherQualityScorer()),
    "word_frequency": score_word_frequency,
    "pii": score_pii,
}
KINDS = ("prose", "one_line", "accents", "runs", "one_word", "letters", "no_spaces", "lines", "addresses", "emoji")


def make_text(kind: str, size: int) -> str:
    """So many bytes of one kind of text, the same each time. The later kinds are what spam and broken files are made of."""
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnop", k=chance.randrange(2, 9))) for _ in range(30_000)]
    odd: dict[str, Callable[[], str]] = {
        "one_word": lambda: "a " * (size // 2),
        "letters": lambda: " ".join(chance.choices("abcdefghij", k=size // 2)),
        "no_spaces": lambda: "".join(chance.choices("abcdefghij", k=size)),
        "lines": lambda: "\n" * size,
        "addresses": lambda: "at 8.8.8.8 now\n" * (size // 15),
        "emoji": lambda: "😀 é " * (size // 8),
    }
    if kind in odd:
        return odd[kind]()
    lines: list[str] = []
    length = 0
    while length < size:
        line = " ".join(chance.choices(words, k=12))
        if kind == "runs":
            line += "\n" + 40 * (" ".join(chance.choices(words, k=3)) + " ")
        lines.append(line)
        length += len(line) + 1
    text = (" " if kind == "one_line" else "\n").join(lines)[:size]
    return text[:-1] + "é" if kind == "accents" else text


def measure(rule: str, kind: str, size: int) -> tuple[float, int]:
    """Seconds of the processor, and MiB at the peak beyond the text (Linux)."""
    RULES[rule](TextBatch(["A warm-up text about nothing. " * 20]))
    text = make_text(kind, size)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    start = time.process_time()
    RULES[rule](TextBatch([text]))
    return time.process_time() - start, (resident("VmHWM") - before) // 1024


def resident(name: str) -> int:
    """KiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def main(megabytes: float) -> None:
    """Print the table."""
    print(f"{'rule':<20}{'text':<10}{'MB/s/core':>10}{'ratio':>8}{'MiB':>6}   at {megabytes:g} MB")
    for rule in RULES:
        for kind in KINDS:
            found = []
            for size in (megabytes / 2, megabytes):
                command = [sys.executable, __file__, rule, kind, str(int(size * 1e6))]
                seconds, mebibytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                found.append((float(seconds), int(mebibytes)))
            (half, _), (whole, peak) = found
            print(f"{rule:<20}{kind:<10}{megabytes / whole:>10.1f}{whole / half:>8.2f}{peak:>6}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(*measure(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    else:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
