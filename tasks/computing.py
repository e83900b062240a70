"""Says in the model's words where and how the numbers of a stage are computed.

`model` and `infra` do not know each other, so the settings of the one become those of the other here.
"""

from infra.workspace import Workspace
from model.config import Compute


def compute_of(ws: Workspace) -> Compute:
    """Where and how the numbers of this stage are computed."""
    # Execution settings hold more (pass_tokens, micro_instances) than the model knows.
    known = {name: value for name, value in ws.compute.model_dump().items() if name in Compute.model_fields}
    return Compute.model_validate(known | {"parallel": ws.compute.parallel.layout()})
