"""The kernels of `spherear page`: one per visit, at most so many at once, ended soon after a visit.

Voila loads this class by its name; nothing else imports it.
"""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets import Integer

FULL = (
    "All %d places of this page are taken: each visit has a process of its own. A place becomes free %d s after a page "
    "was closed, or when an open one was not used for %d minutes. Please load this page again later; who runs the "
    "server can give `spherear page --visits` a larger number."
)


class Visits(AsyncMappingKernelManager):
    """Starts a kernel for a visit, or refuses it with status 503 and the reason when `most` kernels run.

    A kernel ends when it was idle for `cull_idle_timeout` seconds, or for `closed` seconds if no page is connected.
    """

    most = Integer(4, config=True, help="Kernels at once.")
    closed = Integer(30, config=True, help="Idle seconds after which a kernel without a page ends.")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._starting: set[str] = set()

    async def start_kernel(self, **options: Any) -> str:  # type: ignore[override]
        """Start a kernel and return its number. HTTPError (503) when `most` run, after idle ones were ended."""
        if len(self._running()) >= self.most:
            await self.cull_kernels()
        if len(self._running()) >= self.most:
            raise HTTPError(503, FULL, self.most, self.closed, self.cull_idle_timeout // 60)
        kernel_id = str(uuid.uuid4())
        self._starting.add(kernel_id)
        try:
            return await super().start_kernel(kernel_id=kernel_id, **options)
        finally:
            self._starting.remove(kernel_id)

    def _running(self) -> set[str]:
        """Kernels that run or start; one that starts is not always listed."""
        return self._starting.union(self.list_kernel_ids())

    def notify_disconnect(self, kernel_id: str) -> None:
        """A page was closed: from now on its kernel is idle."""
        super().notify_disconnect(kernel_id)
        if kernel_id in self:
            self._kernel(kernel_id).last_activity = datetime.now(UTC)

    def _kernel(self, kernel_id: str) -> Any:
        """A kernel; jupyter_client's types do not know that its server gives it `last_activity`."""
        return self.get_kernel(kernel_id)

    async def cull_kernel_if_idle(self, kernel_id: str) -> None:
        """End a kernel that was idle for too long; one without a page much sooner."""
        model, kernel = self.kernel_model(kernel_id), self._kernel(kernel_id)
        idle = model["execution_state"] == "idle" and datetime.now(UTC) - kernel.last_activity > timedelta(
            seconds=self.closed
        )
        if idle and not model["connections"]:
            self.log.info("Ending kernel %s: its page is closed", kernel_id)
            await self.shutdown_kernel(kernel_id)
        else:
            await super().cull_kernel_if_idle(kernel_id)
