"""A rate limit shared by the requests of one event loop."""

import asyncio
import time


class Bucket:
    """A token bucket that may be overdrawn: whoever comes waits until the balance is positive, then takes.

    Made and used inside one event loop. A rate of 0 is no limit.
    """

    def __init__(self, per_minute: float):
        self._rate = per_minute / 60
        # One second's worth may be taken at once.
        self._most = max(1.0, self._rate)
        self._balance = self._most
        self._at = time.monotonic()
        self._turn = asyncio.Lock()

    async def take(self, amount: float) -> None:
        """Wait for one's turn and a positive balance, then take."""
        if not self._rate:
            return
        async with self._turn:
            while self._settle() <= 0:
                await asyncio.sleep(max(0.001, -self._balance / self._rate))
            self._balance -= amount

    def charge(self, amount: float) -> None:
        """Take without waiting, where the amount is known only afterwards; the next ones wait for it."""
        if self._rate:
            self._settle()
            self._balance -= amount

    def _settle(self) -> float:
        now = time.monotonic()
        self._balance = min(self._most, self._balance + (now - self._at) * self._rate)
        self._at = now
        return self._balance
