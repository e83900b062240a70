"""Base of every configuration object: frozen, closed to unknown fields, field docstrings shown in forms."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen pydantic model; an unknown field is an error; attribute docstrings describe the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
