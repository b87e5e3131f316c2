"""What the library logs becomes messages of the program."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgdb.cli.report import Messages

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class _Handler(logging.Handler):
    def __init__(self, messages: Messages) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        say = self._messages.warning if record.levelno >= logging.WARNING else self._messages.note
        say(record.getMessage())


def forward(messages: Messages, verbose: int) -> Callable[[], None]:
    """Show what the logger ``imgdb`` gets.

    Args:
        messages: where to.
        verbose: 0 for warnings only, 1 for more, 2 for everything.

    Returns:
        A function that ends it.
    """
    logger = logging.getLogger("imgdb")
    handler, level = _Handler(messages), logger.level
    logger.addHandler(handler)
    logger.setLevel(_LEVELS[min(verbose, len(_LEVELS) - 1)])

    def end() -> None:
        logger.removeHandler(handler)
        logger.setLevel(level)

    return end
