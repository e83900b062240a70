"""The dashboard's work pool: what a flow run may choose about its process, which is nothing."""

POOL = "olmo2"
STEP = "prefect.deployments.steps.set_working_directory"
"""The only step that comes before a run."""

JOB_TEMPLATE: dict[str, object] = {
    "job_configuration": {"stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}
"""Prefect's own template lets a run name the command, environment and folder of its process."""

ENTRYPOINTS = (
    *(f"flows.deployments.{name}" for name in ("recipe", "stage", "sweep", "evaluation")),
    *(f"flows.store_deployments.{name}" for name in ("comparison", "export", "adoption", "grid")),
)
"""The flows of prefect.yaml."""
