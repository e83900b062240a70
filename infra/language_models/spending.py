"""What the clients of one stage pay for a language model together, whichever shard or attempt they belong to, and what they may.

Every client tells what it has paid in a file of its own below the stage's work, and reads the others'. So the sum holds over
shards on other machines and over attempts; it lags behind by what was paid since each client told last.
"""

import os

import orjson

from infra.storage.store import Store


class Spending:
    """One client's part in what a stage pays for a model."""

    def __init__(self, store: Store, folder: str, most: float):
        self.most = most
        """In the currency of the endpoint's prices."""
        self._store = store
        self._folder = folder
        # A name that no other client has, so that nobody overwrites what another has told.
        self._name = f"{os.urandom(8).hex()}.json"

    def tell(self, paid: float) -> None:
        """Say what this client has paid so far."""
        self._store.write(f"{self._folder}/{self._name}", orjson.dumps({"paid": paid}))

    def others(self) -> float:
        """What all other clients have told."""
        names = [name for name in self._store.names(self._folder) if name != self._name]
        return sum(float(self._store.read_json(f"{self._folder}/{name}")["paid"]) for name in names)
