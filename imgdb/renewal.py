"""Keeping the lease of long work from looking expired."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from imgdb.errors import ImgdbError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

# The hold protects anyway; writing more often would only keep others from it.
_LEAST_S = 0.1

_log = logging.getLogger("imgdb")


class Renewer(threading.Thread):
    """Renews a lease again and again until it is stopped, or the lease is gone.

    The hold alone would keep it. The expiry is what others see, who can't ask holds: views in
    SQL, and `imgdb.db.leases.on_names`. A forked child has no such thread.

    Args:
        renew: does it; raises NotFoundError when the lease is gone.
        lease: its id, for messages.
        every_s: seconds between two renewals: half of what the lease lives.
    """

    def __init__(self, renew: Callable[[], object], lease: str, every_s: float) -> None:
        super().__init__(name=f"imgdb lease {lease}", daemon=True)
        self._renew = renew
        self._lease = lease
        self._every_s = min(max(every_s, _LEAST_S), threading.TIMEOUT_MAX)
        self._ended = threading.Event()

    def run(self) -> None:
        """Until `stop`; a renewal that fails is tried again at the next turn."""
        while not self._ended.wait(self._every_s):
            try:
                self._renew()
            except NotFoundError:
                _log.warning("lease %s was removed while it was in use", self._lease)
                return
            except (ImgdbError, OSError) as error:
                _log.warning("lease %s was not renewed: %s", self._lease, error)

    def stop(self) -> None:
        """Return when no renewal is under way and none will come."""
        self._ended.set()
        if self.ident is not None:  # else the system had no thread left for it
            self.join()
