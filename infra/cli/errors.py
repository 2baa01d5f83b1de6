"""Errors as the command line shows them: one line."""


class Failed(RuntimeError):
    """The work was asked for correctly and failed; the message says why. Exit code 1."""


def one_line(box: str) -> str:
    """The message in tyro's error box, and the option it thinks was meant, without the drawing.

    The box has sections between rules: on a terminal without Unicode the title is the first, else it is in the frame.
    """
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if text.startswith(("╭", "╰")) or not text:
            continue
        if text.strip("─-"):
            sections[-1].append(text)
        else:
            sections.append([])
    messages = [section for section in (sections if "╭" in box else sections[1:]) if section]
    if not messages:
        return "the arguments do not fit; see --help"
    meant = next((f"; did you mean {each[1].split()[0]}?" for each in messages if each[0].startswith("Perhaps")), "")
    return " ".join(messages[0]) + meant
