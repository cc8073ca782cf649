"""Units of measurement: enough to convert what people write and to see a contradiction.

Owns the table and reading a unit's text. A unit it does not know is no unit: callers treat it as
a remark. Names are read in any case, symbols such as `J` or `mol` only as they are written.
"""

import re
from fractions import Fraction

__all__ = ["Unit", "read_unit"]

Unit = tuple[str, Fraction]
"""Dimension and size. Equal dimensions are converted, different ones never match."""

_NAMES = {
    "length": "mm .001 millimeter .001 millimetre .001 cm .01 centimeter .01 centimetre .01 m 1 "
    "meter 1 metre 1 km 1000 kilometer 1000 kilometre 1000 in .0254 inch .0254 inche .0254 "
    "ft .3048 foot .3048 feet .3048 yd .9144 yard .9144 mi 1609.344 mile 1609.344 nm 1e-9",
    "mass": "mg .001 milligram .001 g 1 gram 1 kg 1000 kilogram 1000 lb 453.59237 "
    "pound 453.59237 oz 28.349523125 ounce 28.349523125",
    "time": "ms .001 millisecond .001 s 1 sec 1 second 1 min 60 minute 60 h 3600 hr 3600 "
    "hour 3600 day 86400 week 604800",
    "calendar": "month 1 year 12",
    "volume": "ml .001 milliliter .001 millilitre .001 l 1 liter 1 litre 1",
    "$": "dollar 1 usd 1 buck 1 cent .01",
    "€": "euro 1 eur 1",
    "rad": "rad 1 radian 1",
    "length/time": "mph .44704",
    "dozen": "dozen 12",
}
_SYMBOLS = {
    "energy": "J 1 kJ 1000",
    "eV": "eV 1 keV 1e3 MeV 1e6 GeV 1e9",
    "force": "N 1 kN 1000",
    "power": "W 1 kW 1000",
    "voltage": "V 1 kV 1000",
    "frequency": "Hz 1 kHz 1e3 MHz 1e6 GHz 1e9",
    "pressure": "Pa 1 kPa 1000",
    "temperature": "K 1",
    "charge": "C 1",
    "current": "A 1",
    "amount": "mol 1",
}


def _table(groups: dict[str, str]) -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    for dimension, text in groups.items():
        words = text.split()
        for word, size in zip(words[::2], words[1::2], strict=True):
            units[word] = (dimension, Fraction(size))
    return units


_UNITS = _table(_NAMES)
_CASED = _table(_SYMBOLS)
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "squared": 2, "cubed": 3}
_UNIT = re.compile(
    r"(?:(?P<pre>square|sq\.?|cubic)\s+)?(?P<word>[A-Za-z]+)\.?"
    r"(?:\s*(?:\^\s*\{?\s*)?(?P<power>-?[1-9])\s*\}?|\s+(?P<post>squared|cubed))?",
    re.IGNORECASE,
)
_PER = re.compile(r"\s+per\s+|/", re.IGNORECASE)


def read_unit(text: str) -> Unit | None:
    """Read a known unit: `cm`, `square inches`, `cm^2`, `miles per hour`, `m/s^2`."""
    above, *below = _PER.split(text.strip(), maxsplit=1)
    unit = _simple(above.strip())
    if unit is None or not below:
        return unit
    divisor = _simple(below[0].strip())
    if divisor is None:
        return None
    return f"{unit[0]}/{divisor[0]}", unit[1] / divisor[1]


def _simple(text: str) -> Unit | None:
    match = _UNIT.fullmatch(text)
    if match is None:
        return None
    word = match["word"]
    lower = word.lower()
    known = _CASED.get(word) or _UNITS.get(lower) or _UNITS.get(lower.removesuffix("s"))
    if known is None:
        return None
    dimension, size = known
    named = (match["pre"] or match["post"] or "").lower().rstrip(".")
    power = int(match["power"] or _POWERS.get(named, 1))
    return known if power == 1 else (f"{dimension}^{power}", size**power)
