"""The worker's suite: starts the worker under test, plays the negotiator towards it, and reports."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import nats.errors
from nats.aio.msg import Msg
from pydantic import ValidationError

from modelnet import messages as m
from modelnet.bus import subjects
from modelnet.bus.catalogue import Catalogue
from modelnet.bus.connection import close, connect
from modelnet.bus.embedded import EmbeddedNats
from modelnet.bus.streams import setup_bus
from modelnet.errors import ConnectionFailed, ModelnetError, UnknownWorker
from modelnet.settings import Settings

from . import bidding, leaving, outages, work
from .desk import Desk, Terms
from .ears import Ear
from .report import Broken, Report
from .subject import Subject

__all__ = ["WorkerSuite"]

START_S = 60.0
"""A worker may load a model first."""
_POLL_S = 0.1
_CARDS = "$KV.CATALOGUE.worker.*"


class WorkerSuite:
    """Runs all checks that can be made of one worker."""

    def __init__(
        self,
        terms: Terms,
        *,
        command: Sequence[str] = (),
        worker: str = "",
        config: Settings,
        on_check: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`command`: starts the worker, told by MODELNET_URL where the server is. `worker`: one that runs already, by
        its id; then some requirements cannot be checked. `config`: with a `url`, the server to use; else one of the
        kit's own. `on_check`: called with the name of each check that begins."""
        self._terms, self._command, self._worker = terms, list(command), worker
        self._config, self._on_check = config, on_check
        self._env: dict[str, str] = {}
        self.report = Report("worker")

    async def run(self) -> Report:
        """Make the checks. Raises `ModelnetError` if the worker does not come up, or ends unasked."""
        async with contextlib.AsyncExitStack() as stack:
            server, url = None, self._config.url
            if not url:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="modelnet-conformance-"))
                server = EmbeddedNats(Path(folder))
                await server.start()
                stack.push_async_callback(server.stop)
                url = server.url
            config = self._config.model_copy(update={"url": url})
            bus = await connect(config, "modelnet-conformance")
            stack.push_async_callback(close, bus)
            if self._command:  # a worker waits for the streams; where they are already, nothing changes
                await setup_bus(bus)
            desk = Desk(bus, self.report, self._terms)
            if not self._command:
                await self._find(desk)
                await self._checks(desk, server, None)
                return self.report
            self._env = {"MODELNET_URL": url}
            async with (
                Ear(bus, _CARDS) as cards,
                Ear(bus, "beat.*") as beats,
                Subject(self._command, self._env) as subject,
            ):
                await self._await(desk, subject, cards, beats)
                await self._checks(desk, server, subject)
            return self.report

    # ------------------------------------------------------------------ the worker comes up

    async def _find(self, desk: Desk) -> None:
        desk.worker = self._worker
        desk.card = await Catalogue(desk.bus).card(self._worker)
        if desk.card is None or await desk.beat() is None:
            raise UnknownWorker(f"no worker {self._worker!r} answers on this network")
        self._require_capability(desk)
        self.report.skip(["W3", "W4", "W5", "W38"], "it needs --subject: a worker that the kit starts")

    async def _await(self, desk: Desk, subject: Subject, cards: Ear, beats: Ear) -> None:
        """Wait until the worker has joined. W2, W4, W5."""
        waited = 0.0
        while (msg := await cards.first(_POLL_S, self._ours)) is None and waited < START_S:
            subject.require_running()
            waited += _POLL_S
        if msg is None:
            raise ModelnetError(
                f"no worker that can do {self._terms.capability} put its card into the catalogue within {START_S:g} s",
                code="no_worker",
            )
        desk.worker = msg.subject.rsplit(".", 1)[1]
        desk.card = m.WorkerCard.decode(msg.data)
        self._require_capability(desk)
        expected = (msg.headers or {}).get("Nats-Expected-Last-Subject-Sequence")
        self.report.expect("W2", expected == "0", "the first card was not published by create, expecting sequence 0")
        beat = await beats.first(5.0, lambda msg: msg.subject == subjects.beat(desk.worker))
        if beat is None:  # W6 says so; it may be there all the same
            self.report.skip(["W5"], "no first beat came")
            while await desk.beat() is None:
                subject.require_running()
                await asyncio.sleep(_POLL_S)
            await asyncio.sleep(_POLL_S)
        else:
            await self._subscribed(desk)
        confirmed = [msg for msg in cards.heard if msg.subject.endswith(f".{desk.worker}")]
        marks = [(msg.headers or {}).get("Nats-Expected-Last-Subject-Sequence", "") for msg in confirmed]
        again = len(marks) > 1 and marks[-1].isdecimal() and int(marks[-1]) > 0
        self.report.expect("W4", again, "the card was not updated once more on its own revision")
        desk.card = m.WorkerCard.decode(confirmed[-1].data)

    async def _subscribed(self, desk: Desk) -> None:
        report, nobody = self.report, m.new_id()
        report.expect("W5", await desk.beat(1.0) is not None, "at its first beat it does not answer queries")
        report.expect("W5", await desk.ask(desk.request()) is not None, "at its first beat it does not bid")
        question = m.AdoptAttempt(tenant="conformance", task=nobody, attempt=1, negotiator=desk.negotiator)
        reply = await desk.order("adopt", question.encode())
        report.expect("W5", reply is not None, "at its first beat it does not answer what awards it has")

    def _ours(self, msg: Msg) -> bool:
        try:
            card = m.WorkerCard.decode(msg.data)
        except ValidationError:
            return False
        return any(m.matches(one.pattern, self._terms.capability) for one in card.capabilities)

    def _require_capability(self, desk: Desk) -> None:
        assert desk.card is not None
        if not any(m.matches(one.pattern, self._terms.capability) for one in desk.card.capabilities):
            able = ", ".join(one.pattern for one in desk.card.capabilities)
            raise ModelnetError(
                f"worker {desk.worker} cannot do {self._terms.capability}, but {able}", code="no_capability"
            )

    # ------------------------------------------------------------------ the checks

    async def _checks(self, desk: Desk, server: EmbeddedNats | None, subject: Subject | None) -> None:
        slow = self._terms.slow_input is not None
        for name, check in (
            ("catalogue", bidding.catalogue),
            ("beats", bidding.beats),
            ("bids", bidding.bids),
            ("offers", bidding.offers),
            ("discovery", bidding.discovery),
            ("attempts", work.attempts),
            ("declined", work.declined),
            ("stored input", work.stored_input),
            ("resumed", work.resumed),
            ("cancelled", work.cancelled),
        ):
            await self._check(name, check, desk, subject)
        if slow:
            for name, check in (
                ("superseded", work.superseded),
                ("expired", work.expired),
                ("adopted", work.adopted),
                ("full", work.full),
            ):
                await self._check(name, check, desk, subject)
        else:
            self.report.skip(["W15", "W20", "W28", "W29", "W33"], "it needs --slow-input")
        await self._check("garbage", bidding.garbage, desk, subject)
        if server is None:
            self.report.skip(["W40", "W41", "W42"], "it needs a server of the kit's own, to be restarted: no --url")
        else:
            await self._check("unstored", outages.unstored, desk, subject)
            await self._check("restarted", lambda desk: outages.restarted(desk, server), desk, subject)
        if subject is not None:
            await self._check("names", self._names, desk, subject)
        await self._check("drained", leaving.drained, desk, None)

    async def _check(
        self, name: str, check: Callable[[Desk], Awaitable[None]], desk: Desk, subject: Subject | None
    ) -> None:
        self._on_check(name)
        with contextlib.suppress(Broken):
            try:
                await check(desk)
            except (nats.errors.Error, ConnectionFailed) as error:
                if subject is not None:
                    subject.require_running()
                raise ModelnetError(f"the server failed during the check {name!r}: {error!r}", code="server") from error
        if subject is not None:
            subject.require_running()

    async def _names(self, desk: Desk) -> None:
        """W3, W38: a second one of the same command, beside the first; killed, started again, and told to go."""
        report, env = self.report, self._env
        assert desk.card is not None
        first = desk.card.instance
        async with Ear(desk.bus, _CARDS) as cards:
            async with Subject(self._command, env) as second:
                other = await self._second(desk, cards, second)
                report.demand("W3", other is not None, "a second of its name did not come up under another id")
                second.kill()
                await second.ended(5.0)
            known = len(cards.heard)
            async with Subject(self._command, env) as third:
                again = await self._second(desk, cards, third, since=known)
                report.demand("W3", again is not None, "a worker whose forerunner was killed did not come up")
                assert again is not None
                await leaving.terminated(Desk(desk.bus, report, self._terms, worker=again), third)
        card = await Catalogue(desk.bus).card(desk.worker)
        kept = card is not None and card.instance == first
        report.expect("W3", kept, "a second of its name took the card of one that answers")

    async def _second(self, desk: Desk, cards: Ear, subject: Subject, since: int = 0) -> str | None:
        """The id of one that joins besides the worker under test, once it answers queries."""
        msg = await cards.first(
            START_S / 2, lambda msg: self._ours(msg) and msg.subject != f"$KV.CATALOGUE.worker.{desk.worker}", since
        )
        if msg is None:
            subject.require_running()
            return None
        found = Desk(desk.bus, self.report, self._terms, worker=msg.subject.rsplit(".", 1)[1])
        async with Ear(desk.bus, subjects.beat(found.worker)) as beats:
            await beats.first(5.0)
        return found.worker
