"""Text of others (names of runs, files, experiments), made safe to be shown."""


def shown(text: object) -> str:
    """`text` with what a terminal would obey, or cannot print, written as escapes.

    Control characters, marks that reverse the direction of writing, and bytes of file names that
    are no text; letters of any script stay.
    """
    return "".join(c if c.isprintable() else _escape(c) for c in str(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
