"""Which emoji are variants of one, by their code points: Unicode Technical Standard #51, sections 2.2 to 2.4."""

from __future__ import annotations

# Skin tones, hair, and what joins: zero-width joiner, female and male sign, arrow (facing right), variation selector.
MODIFIERS = {*(f"1F3F{digit}" for digit in "BCDEF"), *(f"1F9B{digit}" for digit in "0123")}
MODIFIERS |= {"200D", "2640", "2642", "27A1", "FE0F"}
PERSON, CHILD, FAMILY = "1F9D1", "1F9D2", "1F46A"
NEUTRAL = {
    **dict.fromkeys(["1F468", "1F469", "1F471", "1F9D4"], PERSON),  # man, woman, with blond hair, with a beard
    **dict.fromkeys(["1F466", "1F467"], CHILD),  # boy, girl
    **dict.fromkeys(["1F474", "1F475"], "1F9D3"),  # old man, old woman
    **dict.fromkeys(["1F478", "1F934"], "1FAC5"),  # princess, prince
    **dict.fromkeys(["1F930", "1FAC3"], "1FAC4"),  # pregnant woman, pregnant man
    **dict.fromkeys(["1F46C", "1F46D"], "1F46B"),  # two men, two women holding hands
    "1F57A": "1F483",  # man, woman dancing
    "1F936": "1F385",  # Mrs. and Santa Claus
    "1F6BA": "1F6B9",  # women's, men's room
    # OpenMoji's own: polar explorer, nuclear worker, gardener, doctor, nurse, barista
    **{"E2CA": "E2C9", "E2D8": "E2D7", "E341": "E340", "E301": "E300", "E303": "E302", "E186": "E185", "E187": "E185"},
}
SEQUENCES = {  # of people, that also have a code point
    (PERSON, "1F384"): "1F385",  # Mx Claus
    (PERSON, "1F91D", PERSON): "1F46B",
    (PERSON, "2764", PERSON): "1F491",
    (PERSON, "2764", "1F48B", PERSON): "1F48F",
}


def family(hexcode: str) -> str:
    """Return the code points that all variants of an emoji in skin tone, hair and gender share: `1F9D1-2695`."""
    points = [NEUTRAL.get(point, point) for point in hexcode.upper().split("-") if point not in MODIFIERS]
    if len(points) > 1 and {PERSON, CHILD} >= set(points):
        return FAMILY
    return SEQUENCES.get(tuple(points), "-".join(points) or hexcode.upper())
