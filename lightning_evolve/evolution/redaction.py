r"""Redaction: e-mail addresses, payment cards and telephone numbers leave a text before it is kept.

What is recognised is what has the form and, for cards, the check digit of Luhn (1960):

* e-mail: ``name@host.domain``;
* card: 13 to 19 digits in one piece or in the groups that are printed on cards, of an issuer's
  range, whose check digit is right (one in ten other numbers of that form has it by chance);
* phone: international (``+`` or ``00`` and 8 to 15 digits), North American (3-3-4 digits with
  separators), national with a leading 0 and separators (9 to 12 digits), and any number of 7 to 15
  digits that follows a word such as *phone* or *call*.

Dates, versions, IP addresses, ISBNs and plain order numbers stay. Names, postal addresses and
numbers that are written in words are not found: this is no anonymisation.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple


class Redacted(NamedTuple):
    """A text without what was redacted.

    Args:
        text: with ``[EMAIL]``, ``[CARD]`` and ``[PHONE]`` in its place.
        counts: how many of each kind there were.
    """

    text: str
    counts: Counter[str]


# Lengths are bounded and every match starts at a boundary, so that time is linear in the text.
_EMAIL = re.compile(r"(?<![\w.%+'-])[\w.%+'-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?!\w)")

_START, _END = r"(?<![\w#+/-])(?<!\d[.,:])", r"(?!\w)(?![.,:/-]\d)"
# A card's check digit tells it from other numbers, whatever stands around it.
_CARD = re.compile(
    r"(?<![\w+-])(?<!\d[.,:])"
    r"(?:\d{13,19}|\d{4}([ .-])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3})?"
    r"|\d{4}([ .-])\d{6}\2\d{4,5})(?!\d)"
)

_DATE = r"(?:\d{4}[./-]\d{1,2}[./-]\d{1,2}|\d{1,2}[./-]\d{1,2}[./-](?:\d{4}|\d{2}))(?!\d)"
_ADDRESS = r"\d{1,3}(?:\.\d{1,3}){3}(?![\d.])"
_MONTHS = r"0?\d/\d{4}"  # 05/2024 - 06/2025
_ZIP = r"\d{5}-\d{4}(?!\d)"
_DECIMAL = r"\d*\.\d+(?![\d.]|[ ./()-]\d)"
_NUMBER = r"\(?\d(?:[ ./()-]{0,2}\d){6,14}"
_PHONE = re.compile(
    rf"(?<![\w+])\+(?![ ./-])(?!{_DECIMAL})(?:[ ./()-]{{0,2}}\d){{8,15}}{_END}"
    rf"|{_START}00[1-9](?:[ ./()-]{{0,2}}\d){{7,14}}{_END}"
    rf"|{_START}(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])\d{{3}}[ .-]\d{{4}}{_END}"
)
_NATIONAL = re.compile(
    rf"{_START}(?<!\d[ -])(?!{_DATE})(?!{_MONTHS})(?!{_ZIP})"
    rf"(?:\(0[1-9]\d{{0,3}}\)|0[1-9]\d{{0,3}})(?:[ /-]{{1,3}}\d{{2,8}}){{1,4}}{_END}"
)
_CALLED = re.compile(
    rf"(?<!\[)\b(?:tel|phone|telephone|mobile|cell|fax|call|whatsapp)\b(?:[^\w\n]|number|no|is|at|me|us|on)"
    rf"{{1,12}}?(?<!\w)((?!{_DATE})(?!{_ADDRESS}){_NUMBER}){_END}",
    re.IGNORECASE,
)


def redact(text: str) -> Redacted:
    """Takes e-mail addresses, card numbers and telephone numbers out of a text.

    Args:
        text: any; what has been redacted already stays as it is.

    >>> redact("Write to ann@example.org or call +44 20 7946 0958.").text
    'Write to [EMAIL] or call [PHONE].'
    >>> redact("Card 4111 1111 1111 1111, order 4111 1111 1111 1112.").text
    'Card [CARD], order 4111 1111 1111 1112.'
    """
    counts: Counter[str] = Counter()

    def replace(kind: str) -> str:
        counts[kind] += 1
        return f"[{kind.upper()}]"

    def card(match: re.Match[str]) -> str:
        return replace("card") if _is_card(match[0]) else match[0]

    def national(match: re.Match[str]) -> str:
        digits = sum(character.isdigit() for character in match[0])
        return replace("phone") if 9 <= digits <= 12 else match[0]

    def called(match: re.Match[str]) -> str:
        before = match[0][: match.start(1) - match.start()]
        return before + replace("phone")

    text = _EMAIL.sub(lambda _: replace("email"), text)
    text = _CARD.sub(card, text)
    text = _PHONE.sub(lambda _: replace("phone"), text)
    text = _NATIONAL.sub(national, text)
    return Redacted(_CALLED.sub(called, text), counts)


def _is_card(number: str) -> bool:
    digits = [int(character) for character in number if character.isdigit()]
    first, count = digits[0], len(digits)
    # ISO/IEC 7812: airlines and others have 1, 7, 8 and 9; 978 and 979 are books.
    issued = {13: first == 4, 14: first == 3, 15: first == 3}.get(count, 2 <= first <= 6)
    return issued and luhn(digits)


def luhn(digits: list[int]) -> bool:
    """Whether the last digit is the check digit of the others.

    >>> luhn([7, 9, 9, 2, 7, 3, 9, 8, 7, 1, 3]), luhn([7, 9, 9, 2, 7, 3, 9, 8, 7, 1, 4])
    (True, False)
    """
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
