"""Errors as the command line shows them: one line."""

import re


class Failed(RuntimeError):
    """The work was asked for correctly and failed; the message says why. Exit code 1."""


def one_line(box: str) -> str:
    """The message in tyro's drawn error box, without the drawing and without the pointer to --help."""
    lines = []
    for line in box.splitlines():
        text = re.sub(r"[╭╮╰╯│─]+", " ", line).strip()
        if line.strip("│ ").startswith("──") and lines:
            break
        if text and not line.lstrip().startswith(("╭", "╰")):
            lines.append(text)
    return " ".join(lines) or "the arguments do not fit; see --help"
