"""Documents that are made rather than read: which kinds there are, and the stage of each (RECIPE C.7)."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from tasks.artifacts import Documents
from tasks.data.personas import PersonasConfig, personas, resolve_personas
from tasks.data.programs import ProgramsConfig, programs, resolve_programs
from tasks.data.synthesize import SynthesizeConfig, synthesize
from tasks.data.worked import WorkedConfig, resolve_worked, worked


def with_kind(value: Any) -> Any:
    """What names no kind is made from a seed."""
    return {"kind": "problems"} | value if isinstance(value, dict) else value


AnySynthesis = SynthesizeConfig | WorkedConfig | ProgramsConfig | PersonasConfig
Synthesis = Annotated[AnySynthesis, Field(discriminator="kind"), BeforeValidator(with_kind)]
"""`problems` from a seed (the kind when none is named), `worked` problems with other numbers, `programs` that run, or what a
language model writes for `personas`."""


def resolve_synthesis(config: AnySynthesis) -> AnySynthesis:
    """The config with what it will read pinned."""
    match config:
        case SynthesizeConfig():
            return config
        case WorkedConfig():
            return resolve_worked(config)
        case ProgramsConfig():
            return resolve_programs(config)
        case PersonasConfig():
            return resolve_personas(config)


def make_documents(label: str, config: AnySynthesis) -> Documents:
    """Call the stage of a kind."""
    match config:
        case SynthesizeConfig():
            return synthesize.labelled(label)(config)
        case WorkedConfig():
            return worked.labelled(label)(config)
        case ProgramsConfig():
            return programs.labelled(label)(config)
        case PersonasConfig():
            return personas.labelled(label)(config)
