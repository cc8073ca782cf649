"""Stop strings, found in text that arrives in pieces.

Owns matching and holding back; knows nothing of channels: the caller decides which text to feed.
"""

from collections.abc import Sequence

__all__ = ["StopStrings"]


class StopStrings:
    """Cuts a text before the first stop string that completes, however the text is cut up."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text."""
        self.unshown = 0
        """Characters at the end of what was fed that are held back, or cut off for good."""

    def feed(self, text: str) -> str:
        """What may be shown now; "" from the match on."""
        if not self._stops:
            return text
        if self.matched is not None:
            self.unshown += len(text)
            return ""
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.matched = min(found)
            self._held = ""
            self.unshown = len(text) - at
            return text[:at]
        keep = max(_overlap(text, stop) for stop in self._stops)
        shown = len(text) - keep
        self._held = text[shown:]
        self.unshown = keep
        return text[:shown]

    def close(self) -> str:
        """The text ends here: what was held back, now that it can no longer become a stop."""
        held, self._held = self._held, ""
        self.unshown -= len(held)
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, `stop` itself excluded."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
