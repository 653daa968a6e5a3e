"""The client's suite: runs the client under test, plays the network towards it, and reports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from modelnet import messages as m
from modelnet.bus import subjects
from modelnet.bus.connection import close, connect
from modelnet.bus.embedded import EmbeddedNats
from modelnet.bus.replay import Stored, last_of, read_all
from modelnet.bus.streams import setup_bus
from modelnet.settings import Settings

from .ears import Ear
from .link import Link
from .network import CAPABILITY, TENANT, Play, Shown, taken
from .report import Broken, Report
from .subject import Subject

__all__ = ["ClientSuite"]

START_S = 20.0
PATIENCE_S = 10.0
INPUT = {"text": "hello"}
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"


class ClientSuite:
    """Runs all checks of one client."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        config: Settings,
        on_check: Callable[[str], None] = lambda name: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`command`: it gets `submit`, `watch` or `cancel` and their arguments behind it; docs/any-language.md.
        `config`: with a `url`, the server to use, which must have no negotiator; else one of the kit's own.
        `patience_s`: the longest wait for what the client should show."""
        self._patience_s = patience_s
        self._command, self._config, self._on_check = list(command), config, on_check
        self.report = Report("client")

    async def run(self) -> Report:
        """Make the checks. Raises `UsageError` if the command cannot be started."""
        async with contextlib.AsyncExitStack() as stack:
            url = self._config.url
            if not url:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="modelnet-conformance-"))
                server = EmbeddedNats(Path(folder))
                await server.start()
                stack.push_async_callback(server.stop)
                url = server.url
            self._bus = await connect(self._config.model_copy(update={"url": url}), "modelnet-conformance")
            stack.push_async_callback(close, self._bus)
            await setup_bus(self._bus)
            self._link = await stack.enter_async_context(Link(url))
            self._tasks = await stack.enter_async_context(Ear(self._bus, "task.>"))
            for check in (
                self._ordinary,
                self._disorder,
                self._unknown,
                self._gap,
                self._reset,
                self._unacknowledged,
                self._cancel,
                self._refused_cancel,
            ):
                self._on_check(check.__name__.strip("_").replace("_", " "))
                self._link.forget()
                self._link.mend()
                with contextlib.suppress(Broken):
                    await check()
            return self.report

    # ------------------------------------------------------------------ the client at work

    @contextlib.asynccontextmanager
    async def _call(self, *arguments: str) -> AsyncIterator[Shown]:
        env = {"MODELNET_URL": self._link.url, "MODELNET_TENANT": TENANT}
        async with Subject([*self._command, *arguments, "--json"], env) as subject:
            yield Shown(subject)

    @contextlib.asynccontextmanager
    async def _submitted(self) -> AsyncIterator[tuple[Play, Shown]]:
        """A task that the client has published, and follows."""
        task = m.new_id()
        async with self._call("submit", CAPABILITY, "--input", json.dumps(INPUT), "--id", task) as shown:
            found = await taken(self._tasks, task, START_S, self.report)
            if found is not None:
                right = (found.capability, found.input, found.tenant) == (CAPABILITY, INPUT, TENANT)
                self.report.expect("C2", right, "the task's capability, input or tenant is not what was submitted")
            yield Play(self._bus, task), shown

    async def _whole(self, shown: Shown, requirement: str = "C7") -> None:
        """Read on to the Final. C7."""
        report = self.report
        came = await shown.until(self._patience_s, kind="final")
        report.demand(requirement, came, f"no Final was shown within {self._patience_s:g} s")
        code = await shown.subject.ended(self._patience_s)
        report.expect("C7", code is not None, "it does not end after the Final")
        await shown.until(0.2, kind="nothing more")
        last = shown.events[-1].get("kind") == "final" and len(shown.of("final")) == 1
        report.expect("C7", last, "something was shown behind the Final, or it came twice")
        good = shown.of("final")[0].get("status") == "completed"
        report.expect(
            "C7", (code == 0) == good, f"it ended with {code} for a task that is {'' if good else 'not '}completed"
        )

    async def _watched(self, task: str, *more: str, requirement: str) -> Shown:
        """What it shows of a task that has ended."""
        async with self._call("watch", task, *more) as shown:
            await self._whole(shown, requirement)
            return shown

    # ------------------------------------------------------------------ checks

    async def _ordinary(self) -> None:
        """C1, C4, C5, C7, C8 on a task that goes as it should."""
        report = self.report
        async with self._submitted() as (play, shown):
            sent = bytes(self._link.sent)
            before, _, published = sent.partition(b"PUB task.")
            live = subjects.accepted(TENANT, play.task, "status")
            subscribed = re.findall(r"^SUB (\S+)", before.decode(errors="replace"), re.MULTILINE)
            right = bool(published) and any(_covers(pattern, live) for pattern in subscribed)
            report.expect("C1", right, "it had not subscribed to the task's stream when it published the task")
            await play.award("one")
            for number in (1, 2, 3):
                await play.say(number)
            await play.end(4)
            await self._whole(shown)
        due = [(1, number) for number in (1, 2, 3, 4)]
        report.expect("C4", shown.numbered == due, f"shown {shown.numbered} instead of {due}")
        output = shown.of("final")[0].get("output")
        report.expect("C7", output == {"text": "1 2 3 "}, f"the Final shown has the output {output}")
        late = await self._watched(play.task, requirement="C5")
        report.expect("C5", late.numbered == due, f"after the end {late.numbered} was shown instead of {due}")
        rest = await self._watched(play.task, "--after", "2", requirement="C8")
        report.expect("C8", rest.numbered == due[2:], f"behind number 2 {rest.numbered} was shown")

    async def _disorder(self) -> None:
        """C4: early, late, twice, and by those who were not awarded."""
        report = self.report
        async with self._submitted() as (play, shown):
            play.attempt, play.worker = 1, "one"
            await play.say(1, "no ", worker="zombie", auction=None)
            await play.say(1, "no ", auction="another")
            play.attempt = 0
            await play.award("one")
            await play.say(1, "no ", auction="another")
            await play.say(3)
            await play.say(2, "no ", worker="zombie")
            await play.say(1)
            await play.say(1)
            await play.say(2)
            await play.say(3)
            await play.end(4)
            await self._whole(shown)
        texts = [event.get("text") for event in shown.of("delta")]
        report.expect("C4", texts == ["1 ", "2 ", "3 "], f"of events in disorder it showed {texts}")
        async with self._submitted() as (play, shown):  # what a worker says can overtake what the journal has stored
            play.attempt, play.worker, play.auction = 1, "one", m.new_id()
            for number in (1, 2):
                await play.say(number)
            await play.award_as_said()
            await play.end(3)
            await self._whole(shown)
        report.expect(
            "C4", shown.numbered == [(1, 1), (1, 2), (1, 3)], f"before their award came 1 and 2: {shown.numbered}"
        )

    async def _unknown(self) -> None:
        """C10."""
        report = self.report
        async with self._submitted() as (play, shown):
            await play.award("one")
            await play.say(1)
            stamp = {"task": play.task, "attempt": 1, "worker": "one", "auction": play.auction, "number": 2}
            for body in (b"", b"{", b"\xff\xfe", b"[]", json.dumps({**stamp, "kind": "novelty"}).encode()):
                await play.publish(body)
            live = subjects.accepted(TENANT, play.task, "status")
            await self._bus.publish(live, b"garbage that no journal has accepted")
            event = m.Delta(**stamp, text="2 ").to_dict()
            play.texts[2] = "2 "
            await play.publish(json.dumps({**event, "novelty": {"of": "a later version"}}).encode())
            await play.end(3)
            came = await shown.until(self._patience_s, kind="final")
        report.demand("C10", came, "after garbage on its subjects no Final was shown")
        right = [(1, 1), (1, 2), (1, 3)]
        report.expect("C10", shown.numbered == right, f"among what it does not know it showed {shown.numbered}")

    async def _gap(self) -> None:
        """C5: events and an entry that come while the connection is lost."""
        report = self.report
        async with self._submitted() as (play, shown):
            await play.award("one")
            await play.say(1)
            report.demand("C4", await shown.until(self._patience_s, number=1), "the first event was not shown")
            self._link.cut()
            await play.say(2)
            await play.award("two", from_number=2)
            await play.say(3)
            self._link.mend()
            await asyncio.sleep(0.05)
            came = await shown.until(self._patience_s, number=3, attempt=2)
            report.demand("C5", came, "what came while the connection was lost was not shown afterwards")
            await play.say(4)
            await play.end(5)
            await self._whole(shown)
        due = [(1, 1), (1, 2), (2, 3), (2, 4), (2, 5)]
        report.expect(
            "C5", shown.numbered == due, f"over a lost connection {shown.numbered} was shown instead of {due}"
        )
        report.expect("C6", not shown.of("reset"), "an attempt that went on was shown as a reset")

    async def _reset(self) -> None:
        """C6, C8: a second attempt begins below what was shown, a third goes on."""
        report = self.report
        async with self._submitted() as (play, shown):
            await play.award("one")
            for number in (1, 2, 3):
                await play.say(number)
            report.demand("C4", await shown.until(self._patience_s, number=3), "the third event was not shown")
            zombie = (play.worker, play.attempt, play.auction)
            await play.award("two", from_number=1)
            names = ("worker", "attempt", "auction")
            await play.say(4, "no ", **dict(zip(names, zombie, strict=True)))
            await play.say(2, "zwei ")
            report.demand(
                "C6", await shown.until(self._patience_s, number=2, attempt=2, kind="delta"), "attempt 2 was not shown"
            )
            await play.award("three", from_number=2)
            await play.say(3, "trois ")
            await play.end(4)
            await self._whole(shown)
        resets = [(event.get("attempt"), event.get("to")) for event in shown.of("reset")]
        report.expect("C6", resets == [(2, 1)], f"resets (attempt, to): {resets} instead of [(2, 1)]")
        at = next((at for at, event in enumerate(shown.events) if event.get("kind") == "reset"), len(shown.events))
        # The older attempt's fourth event may be shown by a reader that has not heard of the newer one yet.
        early = [event for event in shown.events[:at] if (event.get("attempt"), event.get("number")) == (1, 4)]
        shown.events = [event for event in shown.events if event not in early]
        due = [(1, 1), (1, 2), (1, 3), (2, 2), (3, 3), (3, 4)]
        report.expect("C6", shown.numbered == due, f"shown {shown.numbered} instead of {due}")
        if len(resets) == 1:
            kinds = [(event.get("kind"), event.get("attempt"), event.get("number")) for event in shown.events]
            first = kinds.index(("delta", 2, 2)) if ("delta", 2, 2) in kinds else len(kinds)
            at = next(at for at, kind in enumerate(kinds) if kind[0] == "reset")
            report.expect("C6", at < first, "the reset came behind what it makes room for")
        late = await self._watched(play.task, requirement="C5")
        stands = [(1, 1), (2, 2), (3, 3), (3, 4)]
        report.expect("C5", late.numbered == stands, f"after the end {late.numbered} was shown instead of {stands}")
        rest = await self._watched(play.task, "--after", "3", requirement="C8")
        told = [event.get("to") for event in rest.of("reset")]
        right = told == [1] and rest.numbered == stands[1:]
        report.expect("C8", right, f"behind number 3 of attempt 1, void by now: resets to {told}, then {rest.numbered}")

    async def _unacknowledged(self) -> None:
        """C3: the first acknowledgement is lost."""
        lost = asyncio.Event()

        async def lose_one(piece: bytes) -> bool:
            if b'"stream":"TASKS"' not in piece.replace(b" ", b"") or lost.is_set():
                return True
            lost.set()
            return False

        self._link.on_received = lose_one
        async with self._submitted() as (play, shown):
            known = len(self._tasks.heard)
            ours = re.compile(rf"task\.\d\.{TENANT}\.{play.task}\.")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s):
                    await lost.wait()
            self.report.demand("C3", lost.is_set(), "the task was published without a subject for the acknowledgement")
            again = await self._tasks.first(
                self._patience_s, lambda msg: ours.match(msg.subject) is not None, since=known
            )
            self.report.demand("C3", again is not None, "a task whose acknowledgement was lost was not published again")
            assert again is not None
            named = (again.headers or {}).get("Nats-Msg-Id")
            self.report.expect("C3", named == f"{TENANT}/{play.task}", f"it was repeated with the Nats-Msg-Id {named}")
            await play.award("one")
            await play.end(1)
            await self._whole(shown)

    async def _cancel(self) -> None:
        """C9."""
        report = self.report
        async with self._submitted() as (play, shown):
            await play.award("one")
            await play.say(1)
            await shown.until(self._patience_s, number=1)
            async with self._call("cancel", play.task) as caller:
                code = await caller.subject.ended(START_S)
            entry = await self._asked(play.task)
            report.demand("C9", entry is not None, "no CancelAsked stands in the journal")
            assert entry is not None
            headers = entry.headers
            fence = subjects.journal_of(TENANT, play.task)
            right = headers.get(_EXPECTED) == str(play.sequence) and headers.get(f"{_EXPECTED}-Subject") == fence
            report.expect(
                "C9", right, f"the cancel's fence is {headers.get(_EXPECTED)} on {headers.get(f'{_EXPECTED}-Subject')}"
            )
            report.expect("C9", code == 0, f"cancel ended with {code}")
            await play.end(2, "cancelled")
            await self._whole(shown)
        before = await self._entries(play.task)
        async with self._call("cancel", play.task) as caller:
            await caller.subject.ended(START_S)
        after = await self._entries(play.task)
        report.expect("C9", before == after, "a cancel behind the Final changed the journal")

    async def _refused_cancel(self) -> None:
        """C9: another entry comes between the client's look at the journal and its write."""
        report = self.report
        async with self._submitted() as (play, shown):
            await play.award("one")
            overtaken = asyncio.Event()

            async def overtake(piece: bytes) -> bool:
                if b"PUB journal." in piece and not overtaken.is_set():
                    overtaken.set()
                    await play.wait()
                return True

            self._link.on_sent = overtake
            async with self._call("cancel", play.task) as caller:
                await caller.subject.ended(START_S)
            report.demand("C9", overtaken.is_set(), "cancel did not publish on the journal")
            stands = await self._asked(play.task) is not None
            report.expect("C9", stands, "a cancel that the fence refused was not repeated on the new sequence")
            await play.end(1, "cancelled")
            await self._whole(shown)

    async def _asked(self, task: str) -> Stored | None:
        stored = await last_of(self._bus, "JOURNAL", subjects.journal(TENANT, task, "cancel"))
        if stored is not None:
            with contextlib.suppress(ValueError):
                self.report.expect(
                    "C9", m.CancelAsked.decode(stored.body).task == task, "the cancel names another task"
                )
        return stored

    async def _entries(self, task: str) -> list[int]:
        return [one.sequence async for one in read_all(self._bus, "JOURNAL", subjects.journal_of(TENANT, task))]


def _covers(pattern: str, subject: str) -> bool:
    """Whether whoever subscribed to `pattern` hears what is published on `subject`."""
    tokens = {"*": r"[^.]+", ">": r".+"}
    expression = r"\.".join(tokens.get(token) or re.escape(token) for token in pattern.split("."))
    return re.fullmatch(expression, subject) is not None
