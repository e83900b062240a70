"""A client of language models that are served in the OpenAI protocol: concurrent, rate-limited, patient, remembered.

One thread runs an event loop; stages hand it requests and read the answers in order. A request that fails for a passing
reason (429, 5xx, a stall, a broken body, no connection) is sent again until it is answered or patience ends. A request that
the server refuses for what it is (400, 413, 422) has an answer too, so that a stage can keep it aside. Every other refusal
(wrong key, unknown model) ends the stage at once.
"""

import asyncio
import email.utils
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import aiohttp
import orjson
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from infra.json_values import JsonObject
from infra.language_models.protocol import Answer, AnswerMemory, Request, check_body, usage_of
from infra.language_models.rate_limit import Bucket
from infra.language_models.spending import Spending
from infra.secrets import without_secrets
from infra.settings import EndpointSettings, read_key
from infra.stopping import check_stopping, is_stopping

T = TypeVar("T")

REFUSALS = (400, 413, 422)
"""Statuses by which a server refuses one request for what it is: too long, a field it does not know, a content rule."""
_PASSING = (408, 409, 425, 429)
"""Statuses besides 5xx after which the same request may succeed."""
_LONGEST_WAIT_SECONDS = 60.0
LONGEST_RETRY_AFTER_SECONDS = 600.0
"""A server that asks for more patience than this is asked again after this."""
_WINDOW = 4
"""Requests handed to the loop ahead of the one that is read, in multiples of the concurrency: one slow answer must not
idle the others."""
_CONNECT_SECONDS = 30.0
SPENDING_SECONDS = 2.0
"""How often a client with a cost cap tells what it has paid, and asks what others have."""
STORE_THREADS = 64
"""Answers read from or written to the store at once, at most."""
DRAIN_SECONDS = 30.0
"""How long an interrupted stage waits for what it has sent: it may be paid for already."""
_SHOWN_CHARACTERS = 200
UNREACHABLE = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""What tells that nothing listens at the URL, or nothing that answers."""


class EndpointError(OSError):
    """The endpoint could not be used: the message names the model, the cause and the way out."""


class PassingFailure(Exception):
    """A failure after which the same request may succeed."""

    def __init__(self, reason: str, retry_after_seconds: float = 0.0):
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


@dataclass
class Usage:
    """What was asked and what it costs; prices are per million tokens."""

    requests: int = 0
    remembered: int = 0
    """Answers that were in the store."""
    refused: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """Of all answers used, at the stated prices, whenever they were paid for."""
    paid_now: float = 0.0
    """Of those that this attempt sent for."""


class Endpoint:
    """One model at one endpoint, as a context manager; on leaving it, requests under way may still finish and be kept.

    Without a memory nothing is remembered, and equal requests are sent as often as they are made. `warn` is told, once and
    in the thread that reads the answers, that no connection could be made.
    """

    def __init__(
        self,
        model: str,
        settings: EndpointSettings,
        memory: AnswerMemory | None = None,
        warn: Callable[[str], None] | None = None,
        spending: Spending | None = None,
    ):
        self.model = model
        self.settings = settings
        self.usage = Usage()
        self._memory = memory
        self._warn = warn
        self._spending = spending
        self._sent_for = self._others_paid = 0.0
        self._tell_at = 0.0
        self._unreachable = self._uncountable = ""
        self._headers = bearer(model, settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"endpoint {model}", daemon=True)
        self._wait = wait_random_exponential(multiplier=settings.first_wait_seconds, max=_LONGEST_WAIT_SECONDS)
        self._resume_at = 0.0
        self._closing = False
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._sent: set[asyncio.Task[Any]] = set()
        self._under_way: dict[str, asyncio.Task[Answer]] = {}

    # -- what stages call ---------------------------------------------------------------------------------

    def __enter__(self) -> "Endpoint":
        self._thread.start()
        self._run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._run(self._close())
        finally:
            # Whatever the end raises: a thread that goes on would keep connections and their files.
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def submit(self, request: Request) -> "Future[Answer]":
        """Hand over one request. Its future raises EndpointError when the endpoint cannot be used."""
        return asyncio.run_coroutine_threadsafe(self._answer_once(request), self._loop)

    def ask(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answers in the order of the requests, which are read as they are needed.

        Raises EndpointError when the endpoint cannot be used, and Interrupted when the run is asked to stop.
        """
        return (answer for _, answer in self.ask_each((None, request) for request in requests))

    def ask_each(self, items: Iterable[tuple[T, Request]]) -> Iterator[tuple[T, Answer]]:
        """The same for requests that carry what they are about. The items may come from another `ask_each`: both then
        share the endpoint's concurrency, and second questions are asked while first ones are still answered.
        """
        ahead: deque[tuple[T, Future[Answer]]] = deque()
        for item, request in items:
            ahead.append((item, self.submit(request)))
            if len(ahead) >= _WINDOW * self.settings.concurrency:
                first, future = ahead.popleft()
                yield first, self.result(future)
        while ahead:
            first, future = ahead.popleft()
            yield first, self.result(future)

    def facts(self) -> JsonObject:
        """What was asked and what it costs, for the record."""
        prices = {"prompt": self.settings.prompt_price, "completion": self.settings.completion_price}
        usage = asdict(self.usage) | {"cost": round(self.usage.cost, 6), "paid_now": round(self.usage.paid_now, 6)}
        return {"model": self.model, **usage, "price_per_million_tokens": prices}

    def result(self, future: "Future[Answer]", *, in_order: bool = False) -> Answer:
        """Wait for what `submit` gave. Raises EndpointError when the endpoint cannot be used.

        It raises Interrupted when the run is asked to stop, unless the caller ends `in_order`, at a point that needs this answer.
        """
        while True:
            if not (in_order and is_stopping()):
                check_stopping()
            done = wait([future], timeout=0.5).done
            if self._unreachable and self._warn is not None:
                # Here, since the listeners of a stage belong to its thread.
                self._warn(
                    f"no answer from {self.settings.url} ({self._unreachable}); asking again for up to "
                    f"{self.settings.patience_seconds / 60:,.3g} min"
                )
                self._warn = None
            if done:
                return future.result()

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    # -- in the loop --------------------------------------------------------------------------------------

    async def _open(self) -> None:
        self._loop.set_default_executor(ThreadPoolExecutor(min(self.settings.concurrency, STORE_THREADS)))
        # Time limits are ours, over the whole answer: a server that sends a byte now and then has stalled too.
        self._http = aiohttp.ClientSession(
            headers={"Content-Type": "application/json", **self._headers},
            # Back-pressure comes from the slots: they decide how many are under way.
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            # Proxies of the environment, as other clients take them.
            trust_env=True,
        )
        self._slots = asyncio.Semaphore(self.settings.concurrency)
        self._requests = Bucket(self.settings.requests_per_minute)
        self._tokens = Bucket(self.settings.tokens_per_minute)
        self._telling = asyncio.Lock()
        self._retrying = AsyncRetrying(
            retry=retry_if_exception_type(PassingFailure),
            wait=self._pause,
            stop=self._give_up,
            before_sleep=self._count_retry,
            reraise=True,
        )

    async def _close(self) -> None:
        """Let what was sent come back and be kept, for a while; cancel the rest."""
        self._closing = True
        for task in self._tasks - self._sent:
            task.cancel()
        if self._sent:
            await asyncio.wait(self._sent, timeout=DRAIN_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        try:
            if self._spending is not None and self._tell_at:
                # The store may refuse, and the sum of a cap that is lost has to be told.
                await asyncio.to_thread(self._spending.close, self._sent_for)
        finally:
            await self._http.close()

    async def _answer_once(self, request: Request) -> Answer:
        """The answer; a request that equals one under way waits for that one's."""
        self.usage.requests += 1
        if self._memory is None:
            answer = await self._task(request)
        elif (other := self._under_way.get(request.key)) is not None:
            answer = Answer((await asyncio.shield(other)).body, remembered=True)
        else:
            task = self._under_way[request.key] = self._task(request)
            try:
                answer = await task
            finally:
                del self._under_way[request.key]
        self._count(answer)
        return answer

    def _task(self, request: Request) -> "asyncio.Task[Answer]":
        task = self._loop.create_task(self._answer(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._sent.discard)
        return task

    async def _answer(self, request: Request) -> Answer:
        memory = self._memory
        # Storage may be remote and its client blocks, hence the threads.
        kept = None if memory is None else await asyncio.to_thread(memory.recall, request)
        if kept is not None:
            return Answer(kept, remembered=True)
        try:
            body = await self._retrying(self._send, request)
        except PassingFailure as failure:
            raise EndpointError(
                f"{self.model} at {self.settings.url} did not answer for {self.settings.patience_seconds:,.0f} s "
                f"(execution.endpoints: patience_seconds); the last failure: {failure}. All answers so far are kept: "
                "run the same command again when the server is well"
            ) from failure
        return Answer(body, remembered=False)

    async def _send(self, request: Request) -> JsonObject:
        """Send once, within the limits, and keep what comes. Raises PassingFailure or EndpointError."""
        async with self._slots:
            await self._requests.take(1)
            await self._tokens.take(0)
            while (pause := self._resume_at - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            if self._spending is not None:
                await self._check_spending(self._spending)
            task = asyncio.current_task()
            assert task is not None
            # An answered task stays among the sent ones, and in its slot, until its answer is kept: that is what bounds
            # the cost of a kill. A failed one has nothing to lose.
            self._sent.add(task)
            try:
                body = self._read(*await self._post(request))
            except PassingFailure:
                self._sent.discard(task)
                raise
            kept = body if self._memory is None else await asyncio.to_thread(self._memory.keep, request, body)
            if self._spending is not None:
                # Once it is kept: it may have been paid for, and is good without a cap.
                self._check_countable(body)
            return kept

    async def _check_spending(self, spending: Spending) -> None:
        """Raise EndpointError where the stage has paid what it may. Only what would be paid for comes here."""
        if self._uncountable:
            raise EndpointError(self._uncountable)
        async with self._telling:
            if time.monotonic() >= self._tell_at:
                await asyncio.to_thread(spending.tell, self._sent_for)
                self._others_paid = await asyncio.to_thread(spending.others)
                self._tell_at = time.monotonic() + SPENDING_SECONDS
        paid = self._others_paid + self._sent_for
        if paid >= spending.most:
            raise EndpointError(
                f"this stage has paid {paid:,.4g} for {self.model}, which reaches max_cost={spending.most:g}; all answers so far "
                f"are kept: raise execution.endpoints.{self.model}.max_cost, and the same command goes on where it stopped"
            )

    def _check_countable(self, body: JsonObject) -> None:
        """Raise EndpointError for an answer that does not say what a price is paid for."""
        if "refused" in body:
            return
        prices = {"prompt_tokens": self.settings.prompt_price, "completion_tokens": self.settings.completion_price}
        if missing := [name for name, price in prices.items() if price and name not in usage_of(body)]:
            self._uncountable = (
                f"what {self.model} costs cannot be capped: {self.settings.url} does not say how much it used (no "
                f"{' and no '.join(missing)} in `usage` of its answer). Let the server report its usage, or leave "
                f"execution.endpoints.{self.model}.max_cost out"
            )
            raise EndpointError(self._uncountable)

    async def _post(self, request: Request) -> tuple[int, bytes, str]:
        """Status, body and Retry-After of one sending."""
        url = f"{self.settings.url.rstrip('/')}/{request.route}"
        data = orjson.dumps(request.body | self._served())
        try:
            async with (
                asyncio.timeout(self.settings.timeout_seconds),
                self._http.post(url, data=data, allow_redirects=False) as response,
            ):
                return response.status, await response.read(), response.headers.get("Retry-After", "")
        except UNREACHABLE as error:
            self._unreachable = without_secrets(f"{type(error).__name__}: {error}")
            raise PassingFailure(self._unreachable) from error
        except TimeoutError as error:
            raise PassingFailure(f"no whole answer within {self.settings.timeout_seconds:g} s") from error
        except aiohttp.ClientError as error:
            raise PassingFailure(without_secrets(f"{type(error).__name__}: {error}")) from error

    def _served(self) -> dict[str, str]:
        return {"model": self.settings.served_name} if self.settings.served_name else {}

    def _read(self, status: int, content: bytes, retry_after: str) -> JsonObject:
        """The body of an answer or a refusal. Raises PassingFailure or EndpointError for anything else."""
        if status in REFUSALS:
            return {"refused": f"HTTP {status}: {shown(content)}"}
        if status in _PASSING or status >= 500:
            wait = retry_after_seconds(retry_after)
            if status == 429:
                # The limit is the account's: the others need not find out one by one.
                self._resume_at = max(self._resume_at, time.monotonic() + wait)
            raise PassingFailure(f"HTTP {status}: {shown(content)}", wait)
        if status != 200:
            raise EndpointError(
                f"{self.model} at {self.settings.url} answered HTTP {status}: {shown(content)}. Check the URL, "
                f"the model's name and the key ({self.settings.key_env or 'key_env is not set'}) in execution.endpoints"
            )
        try:
            body = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise PassingFailure(f"a body that is not JSON: {error}") from error
        # Paid for, whether it can be used or not. Counted before the slot is free: the next request in it must see it.
        self._sent_for += self._cost(Answer(body, remembered=False)) if isinstance(body, dict) else 0.0
        if wrong := check_body(body):
            raise PassingFailure(f"a body with {wrong}")
        return body

    # -- retrying and counting ----------------------------------------------------------------------------

    def _pause(self, state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        asked = failure.retry_after_seconds if isinstance(failure, PassingFailure) else 0.0
        return max(asked, self._wait(state))

    def _give_up(self, state: RetryCallState) -> bool:
        return self._closing or (state.seconds_since_start or 0.0) >= self.settings.patience_seconds

    def _count_retry(self, _: RetryCallState) -> None:
        self.usage.retries += 1

    def _cost(self, answer: Answer) -> float:
        prompt, completion = self.settings.prompt_price, self.settings.completion_price
        return (answer.prompt_tokens * prompt + answer.completion_tokens * completion) / 1e6

    def _count(self, answer: Answer) -> None:
        cost = self._cost(answer)
        self.usage.prompt_tokens += answer.prompt_tokens
        self.usage.completion_tokens += answer.completion_tokens
        self.usage.cost += cost
        self.usage.refused += bool(answer.refused)
        if answer.remembered:
            self.usage.remembered += 1
        else:
            self.usage.paid_now += cost
            self._tokens.charge(answer.prompt_tokens + answer.completion_tokens)


def bearer(model: str, settings: EndpointSettings) -> dict[str, str]:
    """The header with the key of a server; none where it wants none. Raises ValueError where the key is not set."""
    # RFC 6750, section 2.1.
    return {"Authorization": f"Bearer {read_key(model, settings)}"} if settings.key_env else {}


def retry_after_seconds(header: str) -> float:
    """What a Retry-After asks for: seconds or a date (RFC 9110, 10.2.3); 0 when it is none that can be read."""
    text = header.strip()
    if not text:
        return 0.0
    try:
        wait = float(text)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(0.0, wait), LONGEST_RETRY_AFTER_SECONDS)


def shown(content: bytes) -> str:
    """The beginning of a server's text, on one line."""
    return without_secrets(" ".join(content.decode(errors="replace").split()))[:_SHOWN_CHARACTERS]
