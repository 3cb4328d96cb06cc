"""Word error rate, the measure of a transcript."""

import re


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Wrong, missing and surplus words over the words of the reference; case and punctuation do not count."""
    expected, heard = _words(reference), _words(hypothesis)
    row = list(range(len(heard) + 1))
    for i, word in enumerate(expected, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1] / len(expected)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower().replace("’", "'"))
