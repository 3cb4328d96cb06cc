"""Stop sequences over a text that arrives in pieces."""

import re
from collections.abc import Sequence


class StopMatcher:
    """Lets text through up to the first stop sequence, and holds back an end that may yet become one.

    Takes time linear in the text, whatever it and the stop sequences are: each character is looked at once for each.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [_Stop(stop) for stop in stops if stop]
        firsts = {stop.text[0] for stop in self._stops}
        self._may_begin = re.compile("|".join(map(re.escape, sorted(firsts))) or "(?!)").search
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """The text that is safe to send now. After a match `stopped` is set and nothing more comes."""
        if self.stopped:
            return ""
        if not self._held and not self._may_begin(piece):
            return piece
        text = self._held + piece
        # The first to be complete wins, so that the answer does not depend on how the text was split.
        ends = ((end, len(stop.text)) for stop in self._stops if (end := stop.feed(piece)) is not None)
        found = min(((end, -length) for end, length in ends), default=None)
        if found is not None:
            self.stopped, held, self._held = True, len(self._held), ""
            return text[: held + sum(found)]
        keep = max(stop.matched for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, once the text is known to end here."""
        held, self._held = self._held, ""
        return held


class _Stop:
    """matched: how many characters of `text` the text fed so far ends with (Knuth, Morris and Pratt, 1977)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._shorter = _borders(text)

    def feed(self, piece: str) -> int | None:
        """Where in `piece` it is complete for the first time."""
        text, shorter, matched = self.text, self._shorter, self.matched
        for at, character in enumerate(piece, 1):
            while matched and text[matched] != character:
                matched = shorter[matched]
            matched += text[matched] == character
            if matched == len(text):
                return at
        self.matched = matched
        return None


def _borders(text: str) -> list[int]:
    """For each length of a beginning of `text`: that of the longest shorter one that it ends with too."""
    borders = [0, 0]
    for character in text[1:]:
        length = borders[-1]
        while length and text[length] != character:
            length = borders[length]
        borders.append(length + (text[length] == character))
    return borders
