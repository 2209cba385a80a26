#!/usr/bin/env python3
"""Writes text/nfc_tables.h: the canonical decompositions and combining classes that Hugging Face's tokenizers know, which
are those of Unicode 9. Nothing here runs in a build or a test; what it wrote is checked in.

    python3 -m venv /tmp/oracle && /tmp/oracle/bin/pip install tokenizers==0.22.2
    /tmp/oracle/bin/python text/nfc_tables.py && clang-format -i text/nfc_tables.h

The facts are Python's (unicodedata, of Unicode 14 when this was written); a character about which tokenizers do not agree is
younger than what they know, and is left out. At the end the script compares the tables' rules with tokenizers once more.
"""

import itertools
import pathlib
import unicodedata

from tokenizers.normalizers import NFC

nfc = NFC().normalize_str
characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)


def is_known(character):
    """Whether tokenizers sort it among marks as Python does."""
    texts = (character, "a" + character + "\u0301", "a\u0301" + character + "\u0316", "a" + character + "\u0345")
    return all(nfc(text) == unicodedata.normalize("NFC", text) for text in texts)


known = [c for c in characters if is_known(c)]
classes, decompositions = [], []
for c in known:
    number = unicodedata.combining(c)
    if number:
        if classes and classes[-1][2] == number and classes[-1][1] + 1 == ord(c):
            classes[-1][1] = ord(c)
        else:
            classes.append([ord(c), ord(c), number])
    parts = unicodedata.decomposition(c).split()
    if parts and not parts[0].startswith("<") and ord(c) not in HANGUL:
        first, second = [int(part, 16) for part in parts] + [0] * (2 - len(parts))
        is_composed = nfc(unicodedata.normalize("NFD", c)) == c
        if second and nfc(chr(first) + chr(second)) != (c if is_composed else nfc(c)):
            continue  # younger
        decompositions.append((ord(c), first, second, is_composed))

lines = [
    "// Canonical decompositions and combining classes of Unicode 9, sorted. Facts of the Unicode character database, written",
    "// by nfc_tables.py; included by nfc.cc alone. Syllables of Hangul are left out.",
    "#pragma once", "", "#include <cstdint>", "", "namespace terrace {", "",
    "struct CombiningClassRange {", "  char32_t first, last;", "  uint8_t combining_class;", "};", "",
    "struct Decomposition {", "  char32_t code_point;",
    "  char32_t first, second;  // second 0: one character",
    "  bool is_composed;        // NFC joins the two", "};", "",
    "inline constexpr CombiningClassRange kCombiningClasses[] = {",
    *(f"{{{first:#x}, {last:#x}, {number}}}," for first, last, number in classes), "};", "",
    "inline constexpr Decomposition kDecompositions[] = {",
    *(f"{{{c:#x}, {first:#x}, {second:#x}, {str(composed).lower()}}}," for c, first, second, composed in decompositions),
    "};", "", "}  // namespace terrace", ""]
(pathlib.Path(__file__).parent / "nfc_tables.h").write_text("\n".join(lines))
print(len(classes), "ranges,", len(decompositions), "decompositions,",
      len(characters) - len(known), "characters left out")
