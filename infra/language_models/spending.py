"""What the clients of one stage pay for a language model together, whichever shard or attempt they belong to, and what they may.

Every client tells what it has paid in a file of its own below the stage's work, and reads the others'. So the sum holds over
shards on other machines and over attempts; it lags behind by what was paid since each client told last. A client that has
closed leaves its sum in a file's name. One listing then tells the sums of all earlier shards, however many there were, and only
files of open clients, and of those that were killed, are read.
"""

import os
import re

import orjson

from infra.storage.store import Store

_CLOSED = re.compile(r"(?P<client>[0-9a-f]{16})-paid-(?P<paid>[0-9.e+-]+)")
"""Names of files that closed clients leave."""


class Spending:
    """One client's part in what a stage pays for a model."""

    def __init__(self, store: Store, folder: str, most: float):
        self.most = most
        """In the currency of the endpoint's prices."""
        self._store = store
        self._folder = folder
        # A name that no other client has, so that nobody overwrites what another has told.
        self._client = os.urandom(8).hex()

    def tell(self, paid: float) -> None:
        """Say what this client has paid so far."""
        self._store.write(self._open(self._client), orjson.dumps({"paid": paid}))

    def close(self, paid: float) -> None:
        """Say what this client has paid in all; it tells nothing afterwards."""
        if paid:
            self._store.write(f"{self._folder}/{self._client}-paid-{float(paid)!r}", b"")
        # Removed last: whoever sees both counts the closed one.
        self._store.remove(self._open(self._client))

    def others(self) -> float:
        """What all other clients have told."""
        closed, names = self._listed()
        return sum(closed.values()) + sum(self._told(name) for name in names)

    def _listed(self) -> tuple[dict[str, float], list[str]]:
        """The sums of closed clients, and the open ones, this one left out."""
        closed, clients = dict[str, float](), list[str]()
        for name in self._store.names(self._folder):
            if match := _CLOSED.fullmatch(name):
                closed[match["client"]] = float(match["paid"])
            elif name.endswith(".json"):
                clients.append(name.removesuffix(".json"))
        closed.pop(self._client, None)
        return closed, [name for name in clients if name != self._client and name not in closed]

    def _told(self, client: str) -> float:
        try:
            return float(self._store.read_json(self._open(client))["paid"])
        except FileNotFoundError:
            # It has closed since the listing, which leaves its sum in a name, or nothing where it paid nothing.
            return self._listed()[0].get(client, 0.0)

    def _open(self, client: str) -> str:
        return f"{self._folder}/{client}.json"
