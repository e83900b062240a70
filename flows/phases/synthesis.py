"""Documents that are made rather than read: which kinds there are, and the stage of each (RECIPE C.7)."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from tasks.data.synthesis.personas import PersonasConfig
from tasks.data.synthesis.programs import ProgramsConfig
from tasks.data.synthesis.synthesize import SynthesizeConfig
from tasks.data.synthesis.worked import WorkedConfig


def with_kind(value: Any) -> Any:
    """What names no kind is made from a seed."""
    return {"kind": "problems"} | value if isinstance(value, dict) else value


AnySynthesis = SynthesizeConfig | WorkedConfig | ProgramsConfig | PersonasConfig
Synthesis = Annotated[AnySynthesis, Field(discriminator="kind"), BeforeValidator(with_kind)]
"""`problems` from a seed (the kind when none is named), `worked` problems with other numbers, `programs` that run, or what a
language model writes for `personas`."""
