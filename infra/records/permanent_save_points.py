"""Permanent save points: which a store has, of which stages, finished or not, and their files for others to read.

Source: RECIPE J. They lie in the progress folder of the attempt that made them (`infra/records/save_points.py`) and outlive it.
For people who look around and for what they name: no stage searches for one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from infra.records.record import Started, load_started, progress_folder
from infra.records.save_points import SavePoint, SavePointFile, permanent_area, read_marker, save_points
from infra.storage.store import Store


@dataclass(frozen=True)
class KeptSavePoint:
    """A permanent save point, and whose it is."""

    stage: str
    id: str
    generation: int
    point: SavePoint

    @property
    def owner(self) -> str:
        return f"{self.stage}/{self.id}"

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.id}@{self.point.step}"

    def files(self, store: Store) -> dict[str, SavePointFile]:
        """Size and hash of every file, by name. Raises DamagedSavePoint when its marker does not say so."""
        return read_marker(store, self.point, self.owner)

    def started(self, store: Store) -> Started:
        """What the stage was computing. Raises ValueError where that is not known."""
        found = load_started(store, self.stage, self.id, self.generation)
        if found is None:
            raise ValueError(
                f"what {self.owner} computes is not known in store {store.url}: an older version began it, and it is not "
                "finished; run it to its end, or start it again with this version"
            )
        return found


def kept_at(stage: str, id: str, generation: int, step: int) -> KeptSavePoint:
    """The permanent save point of a step, whether it exists or not."""
    return KeptSavePoint(stage, id, generation, SavePoint(step, permanent_area(progress_folder(stage, id, generation))))


def kept_save_points(store: Store, id: str = "", stage: str | None = None) -> Iterator[KeptSavePoint]:
    """All permanent save points of the stages whose id begins so, by stage, id, generation and step."""
    for name in store.names("_progress"):
        if stage is not None and name != stage:
            continue
        for found in store.names(f"_progress/{name}"):
            if not found.startswith(id):
                continue
            for attempt in store.names(f"_progress/{name}/{found}"):
                folder = f"_progress/{name}/{found}/{attempt}"
                for point in save_points(store, folder):
                    # An ephemeral one may be removed at any moment, so nobody is told of it.
                    if point.area == permanent_area(folder):
                        yield KeptSavePoint(name, found, int(attempt.removeprefix("g")), point)


def find_kept(store: Store, id: str, step: int) -> KeptSavePoint:
    """The save point of a step of the stage whose id begins so, of its newest generation that has it.

    Raises ValueError, which names what there is, when there is none or the id is not unique.
    """
    found = list(kept_save_points(store, id))
    owners = sorted({kept.owner for kept in found})
    if len(owners) > 1:
        raise ValueError(f"id {id!r} is not unique in store {store.url}: {', '.join(owners)}; give more of it")
    there = sorted({kept.point.step for kept in found})
    if step not in there:
        known = f"it has those of steps {', '.join(map(str, there))}" if there else "it has none"
        raise ValueError(
            f"{owners[0] if owners else id} has no permanent save point of step {step} in store {store.url}: {known}; "
            "execution.keep_every says how often one is kept, and `olmo2 ls --save-points` lists them"
        )
    # A rerun has the same id in a new generation; the newest is what people mean.
    return max((kept for kept in found if kept.point.step == step), key=lambda kept: kept.generation)
