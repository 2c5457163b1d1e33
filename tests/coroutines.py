"""Coroutines in tests: run with a deadline, and let go round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from target import DEADLINE


def run(main: Callable[[], Coroutine[Any, Any, Any]], *, debug: bool = False) -> Any:
    """Run a coroutine on a loop of its own, which must end before the deadline."""

    async def bounded() -> Any:
        async with asyncio.timeout(3 * DEADLINE):
            return await main()

    return asyncio.run(bounded(), debug=debug)


async def turns(n: int = 4) -> None:
    """Let the event loop go round: enough for whatever is ready to get where it waits again."""
    for _ in range(n):
        await asyncio.sleep(0)
