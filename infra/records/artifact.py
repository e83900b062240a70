"""An artifact: the small frozen value that stands for one stage's finished result in a store."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Artifact(BaseModel):
    """What one stage made: where it is, what it is made of, and a few typed facts. Never bulk data.

    Subclasses add their facts as fields; `kind` is the subclass's name. The address is relative to the store's root,
    so that the same recipe has the same artifacts on a laptop's folder and in a bucket.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    stage: str
    """Name of the stage that made it."""
    id: str
    """Hash of what was computed: stage, version, config and the digests of the inputs."""
    address: str
    """Payload folder, relative to the store's root."""
    digest: str
    """Hash over the sorted (path, size, sha256) of the payload's files."""

    kinds: ClassVar[dict[str, type["Artifact"]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        # Kinds register themselves, so that a record's `kind` finds its class.
        Artifact.kinds[cls.__name__] = cls

    @property
    def kind(self) -> str:
        return type(self).__name__

    def facts(self) -> dict[str, object]:
        """The fields that the subclass adds."""
        return self.model_dump(mode="json", exclude=set(Artifact.model_fields))
