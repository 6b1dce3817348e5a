"""What a run comes to that has nothing to adapt."""

from components.base import component


@component
def anything(languages: list) -> bool:
    """Whether any language is due."""
    return bool(languages)


@component
def nothing_due() -> str:
    """The decisions of a run without any, as JSON."""
    return "[]"
