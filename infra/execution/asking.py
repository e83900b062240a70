"""Asks a person on the dashboard whether a stage may run: a small flow run of its own that pauses with Prefect's input form.

The run `approve LABEL` shows plan and price, and its Resume button opens the form. Other stages go on meanwhile. The
pause waits in a thread of its own, so that a cancelled run need not wait for the answer.
"""

import threading
from contextvars import copy_context
from typing import Literal
from uuid import UUID

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout, ObjectNotFound, PrefectSignal
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.settings import PREFECT_API_URL, PREFECT_UI_ENABLED
from prefect.states import Cancelled
from pydantic import Field

from infra.execution.approval import Answer, ApprovalNeeded, Question, as_money
from infra.execution.markdown import code, escaped, slug
from infra.stopping import check_stopping

_PATIENCE_SECONDS = 14 * 24 * 3600
"""An approval that nobody gives in two weeks is none."""
POLL_SECONDS = 2
ENDED = ("CANCELLED", "CANCELLING", "CRASHED", "FAILED")


class ApprovalForm(RunInput):
    """The form on the dashboard."""

    decision: Literal["approve", "refuse"] = Field(description="Whether the stage may run.")
    reason: str = Field(min_length=1, max_length=2000, description="Why; it is kept in the store with your name.")
    name: str = Field(min_length=1, max_length=200, description="Who decides.")


def ask_on_dashboard(question: Question) -> Answer:
    """Pause a flow run of its own until a person has answered its form.

    Raises ApprovalNeeded without a dashboard, Interrupted when the run is asked to stop meanwhile.
    """
    # A run's temporary server has an API and no page.
    if PREFECT_API_URL.value() is None or not PREFECT_UI_ENABLED.value():
        raise ApprovalNeeded(
            f"{question.label} would cost {as_money(question.price)}, above execution.approve_above={question.above:g}, and "
            "there is no dashboard to ask on. Say --approve 'why', which is kept in the store; or start `olmo2 dashboard` and "
            "give the same command again: it waits there for your answer"
        )
    asked = _Asked(question)
    # A daemon, for Prefect's pause cannot be called off from outside and may last two weeks.
    threading.Thread(
        # The context holds Prefect's settings (`without_heartbeats` among them) and the flow that asks; a bare thread would have
        # neither.
        target=copy_context().run,
        args=(asked.run,),
        daemon=True,
        name=f"approve {question.label}",
    ).start()
    try:
        while not asked.done.wait(POLL_SECONDS):
            check_stopping()
            asked.check_cancelled()
    except BaseException:
        asked.cancel()
        raise
    return asked.answer()


class _Asked:
    """One question under way."""

    def __init__(self, question: Question):
        self.done = threading.Event()
        self._question = question
        self._run: UUID | None = None
        self._form: ApprovalForm | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Ask and wait; what comes of it is kept for `answer`."""
        name = f"approve {self._question.label}"
        try:
            self._form = flow(name="approval", flow_run_name=name, persist_result=False)(self._pause)()
        except BaseException as error:
            # Told to the thread that waits, which raises it. Prefect's signals (Abort, Pause) are no Exceptions.
            self._error = error
        finally:
            # Set last, so that whoever waits finds the answer or the error; set always, for it waits without end.
            self.done.set()

    def _pause(self) -> ApprovalForm:
        context = FlowRunContext.get()
        assert context is not None and context.flow_run is not None, "called as a flow"
        self._run = context.flow_run.id
        text = as_markdown(self._question)
        create_markdown_artifact(text, key=slug(f"{self._question.label}-approval"))
        return pause_flow_run(
            wait_for_input=ApprovalForm.with_initial_data(description=text),
            timeout=_PATIENCE_SECONDS,
            poll_interval=POLL_SECONDS,
        )

    def check_cancelled(self) -> None:
        """Raise ApprovalNeeded when somebody cancelled the question instead of answering it."""
        if self._run is None:
            return
        with get_client(sync_client=True) as client:
            try:
                state = client.read_flow_run(self._run).state
            except ObjectNotFound:
                state = None
        if state is None or state.type.value in ENDED:
            raise ApprovalNeeded(
                f"the question about {self._question.label} was cancelled or deleted; run again and answer its form"
            )

    def cancel(self) -> None:
        """Take the question off the dashboard."""
        if self._run is not None:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(self._run, Cancelled(message="nobody waits for this any more"), force=True)

    def answer(self) -> Answer:
        """What was said. Raises ApprovalNeeded when nobody answered or could be asked, else what went wrong."""
        if isinstance(self._error, FlowPauseTimeout):
            raise ApprovalNeeded(f"nobody answered the question about {self._question.label} in time") from self._error
        if isinstance(self._error, PrefectSignal):
            # A signal of the question's own run says nothing of the run that asks, and Prefect would take it for that.
            raise ApprovalNeeded(
                f"the question about {self._question.label} could not be asked: {self._error!r}"
            ) from self._error
        if self._error is not None:
            raise self._error
        assert self._form is not None, "a flow without an error has returned its form"
        return Answer(self._form.decision, self._form.reason, self._form.name)


def as_markdown(question: Question) -> str:
    """Plan and price for the form and its artifact."""
    lines = [
        f"**{escaped(question.label)}** would cost **{as_money(question.price)}**, more than `approve_above` "
        f"({as_money(question.above)}). It runs because: {escaped(question.why)}.",
        "",
        "| plan | |",
        "|---|---|",
        *(f"| {escaped(name)} | {escaped(value)} |" for name, value in question.plan),
        f"| artifact | {code(question.id)} |",
    ]
    return "\n".join(lines)
