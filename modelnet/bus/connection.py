"""Connections to NATS: the options every process uses, and errors a person can act on."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats.errors
import structlog
from nats.aio.client import DEFAULT_FLUSH_TIMEOUT, NO_RESPONDERS_STATUS, PING_PROTO, Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.js.api import Header

from modelnet.cancellation import heeding_cancellation
from modelnet.errors import AuthenticationFailed, ConnectionFailed
from modelnet.settings import Settings

__all__ = ["Connection", "close", "connect", "connection_options", "listen", "unsubscribe"]

log = structlog.get_logger(__name__)


class Connection(Client):  # type: ignore[misc]  # nats-py has no types
    """nats-py's client, which as it is may give up reconnecting, reconnect for ever after it was closed, take for
    flushed what it has not sent, hear nothing more after a flush that took too long, or swallow a cancellation: where
    one meets a result, asyncio.wait_for (before Python 3.12) returns that and says nothing. It adds `hear`."""

    _pending: list[bytes]
    _write_due = False
    """Whether what is pending will be written in this turn of the event loop."""
    _hearing = False
    """Whether a handler of `hear` runs."""

    async def hear(self, subject: str, handler: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """As `subscribe`, but each message is handled as it is read, not by a task of the subscription's in a later
        turn of the event loop: cheaper, and sooner above all where the processor is cold. For handlers that wait for
        nothing, as those that only publish: meanwhile nothing is read, not even what one may wait for."""
        sub = await self.subscribe(subject, cb=handler)
        sub.heard_by = handler
        return sub

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        sub = self._subs.get(sid)
        handler = getattr(sub, "heard_by", None)
        if handler is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        told = await self._process_headers(headers) if headers else None
        self._hearing = True
        try:
            await handler(self._build_message(sid, subject, reply, data, told))
        except asyncio.CancelledError:
            if (reading := asyncio.current_task()) is None or reading.cancelling():
                raise
            log.error("handler_cancelled", subject=subject.decode())  # by itself: the connection stands
        except Exception as error:
            await self._error_cb(error)
        finally:
            self._hearing = False
        if self._pending_data_size > self._max_pending_size:
            await self._flush_pending(force_flush=True)

    async def _send_command(self, cmd: bytes, priority: bool = False) -> None:
        """As nats-py's; but a handler of `hear` does not wait for the socket: the reader, which a lost connection
        cancels, does so behind it."""
        if self._hearing:
            self._pending.insert(0 if priority else len(self._pending), cmd)
            self._pending_data_size += len(cmd)
        else:
            await super()._send_command(cmd, priority)

    async def request(
        self, subject: str, payload: bytes = b"", timeout: float = 0.5, *, headers: dict[str, Any] | None = None
    ) -> Msg:
        """As nats-py's, and it ends when it is cancelled: asyncio.wait_for, which that uses, is left out."""
        if not self._resp_sub_prefix:
            await self._init_request_sub()
        loop = asyncio.get_running_loop()
        token, answer = secrets.token_hex(11), loop.create_future()
        self._resp_map[token] = answer
        timer = loop.call_later(timeout, _run_out, answer)
        try:
            await self.publish(subject, payload, reply=f"{self._resp_sub_prefix.decode()}{token}", headers=headers)
            msg: Msg = await answer
        finally:
            timer.cancel()
            del self._resp_map[token]
        if msg.headers and msg.headers.get(Header.STATUS) == NO_RESPONDERS_STATUS:
            raise nats.errors.NoRespondersError
        return msg

    async def flush(self, timeout: float = DEFAULT_FLUSH_TIMEOUT) -> None:
        """As nats-py's, and it ends when it is cancelled."""
        await heeding_cancellation(super().flush(timeout))

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        """As nats-py's; and what is published in one turn of the event loop is written at the end of it without waking
        a task for that, unless it must wait for the socket. Spares a lone publish a fifth of its CPU."""
        if force_flush or not self.is_connected or not isinstance(self._transport, TcpTransport):
            return await heeding_cancellation(super()._flush_pending(force_flush))
        if not self._write_due:
            self._write_due = True
            asyncio.get_running_loop().call_soon(self._write)
        return None

    def _write(self) -> None:
        self._write_due = False
        if not self._pending or not self.is_connected:
            return
        with contextlib.suppress(OSError, RuntimeError):  # the flusher meets the same, and knows what to do
            writer = self._transport._io_writer
            if not writer.transport.get_write_buffer_size():
                writer.writelines(self._pending)
                self._pending, self._pending_data_size = [], 0
                return
        if self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.Future())

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """As nats-py's, behind what waits to be sent and not ahead of it: what a flush of a connection that stands
        proves is that the server has read all of that."""
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        """As nats-py's, also where nobody waits for it any more."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _attempt_reconnect(self) -> None:
        """Until it is connected or closed.

        What fails after the new connection's read loop has begun, such as the first flush, makes nats-py try again on
        the same transport, where that loop reads still: a RuntimeError, by which the attempts end without a word.
        """
        while not self.is_closed:
            try:
                await super()._attempt_reconnect()
                return
            except Exception as error:
                if not self.is_closed:
                    log.warning("reconnect_failed", error=repr(error))
                    self._status = Client.RECONNECTING
                    await asyncio.sleep(self.options["reconnect_time_wait"])

    async def _connect_to_server(self, server: Any) -> None:
        """The next attempt, unless a cancellation was swallowed by the last one: whoever ends the event loop cancels
        once and waits. Of what waits to be sent the PINGs are left out: nobody waits for their PONGs there."""
        kept = [command for command in self._pending if command != PING_PROTO]
        self._pending_data_size -= (len(self._pending) - len(kept)) * len(PING_PROTO)
        self._pending = kept
        if (task := asyncio.current_task()) is self._reconnection_task and task is not None and task.cancelling():
            raise asyncio.CancelledError
        await super()._connect_to_server(server)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        """Close, and try no more to connect.

        A cancellation that meets an attempt that has just failed is swallowed, and nats-py tries again, for ever:
        nothing but another cancellation ends it.
        """
        try:
            await super()._close(status, do_cbs)
        finally:
            reconnecting = self._reconnection_task
            if reconnecting is not asyncio.current_task():
                while reconnecting is not None and not reconnecting.done():
                    reconnecting.cancel()
                    await asyncio.wait([reconnecting], timeout=0.1)
            self._status = status  # an attempt that failed meanwhile has said that it reconnects


def _run_out(answer: asyncio.Future[Msg]) -> None:
    if not answer.done():
        answer.set_exception(nats.errors.TimeoutError())


def connection_options(
    settings: Settings, name: str, *, on_reconnect: Callable[[], Awaitable[None]] | None = None
) -> dict[str, Any]:
    """nats-py options for a connection that reconnects for ever and notices a dead peer in about 20 s.

    `on_reconnect` is awaited after each reconnect, when subscriptions stand again and what was sent meanwhile is lost.
    If it fails, that is logged.
    """

    async def on_error(error: Exception) -> None:
        if isinstance(error, (nats.errors.Error, OSError)):
            log.debug("bus_error", connection=name, error=repr(error))
        else:  # raised by a subscription's handler
            log.error("handler_failed", connection=name, error=repr(error), exc_info=error)

    async def on_disconnect() -> None:
        log.warning("bus_disconnected", connection=name)

    async def reconnected() -> None:
        log.info("bus_reconnected", connection=name)
        if on_reconnect is None:
            return
        try:
            await on_reconnect()
        except Exception as error:  # nats-py would take the connection for lost, or be lost itself
            log.warning("reconnect_incomplete", connection=name, error=repr(error))

    options: dict[str, Any] = {
        "servers": settings.servers,
        "name": name,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.5,
        "ping_interval": 10,
        "max_outstanding_pings": 2,
        "connect_timeout": settings.connect_timeout_s,
        "pending_size": 8 << 20,
        "error_cb": on_error,
        "disconnected_cb": on_disconnect,
        "reconnected_cb": reconnected,
    }
    if settings.user:
        options |= {"user": settings.user, "password": settings.password}
    return options


async def connect(
    settings: Settings, name: str, *, on_reconnect: Callable[[], Awaitable[None]] | None = None
) -> Connection:
    """A connection that fails at once if no server is there, and reconnects for ever once it has been made.

    Raises `ConnectionFailed` or `AuthenticationFailed`.
    """
    options = connection_options(settings, name, on_reconnect=on_reconnect)
    refusals: list[Exception] = []

    async def on_error(error: Exception) -> None:
        refusals.append(error)

    nc = Connection()

    async def on_disconnect() -> None:
        if not nc.is_closed:  # else it was closed on purpose
            await options["disconnected_cb"]()

    try:
        first = {"max_reconnect_attempts": 1, "reconnect_time_wait": 0.05, "error_cb": on_error}
        first["disconnected_cb"] = on_disconnect
        async with asyncio.timeout(settings.connect_timeout_s):
            await nc.connect(**(options | first))
    except (OSError, nats.errors.Error, TimeoutError) as error:
        await close(nc)
        raise explain(error, refusals, settings) from None
    nc.options |= {key: options[key] for key in ("max_reconnect_attempts", "reconnect_time_wait")}
    nc._error_cb = options["error_cb"]
    return nc


@contextlib.asynccontextmanager
async def listen(nc: Client, subject: str) -> AsyncIterator[asyncio.Queue[Msg]]:
    """What comes on a subject, in order. (nats-py's `next_msg` starts two tasks for each, and swallows a cancellation
    that meets one.)"""
    heard = asyncio.Queue[Msg]()
    sub = await nc.subscribe(subject, cb=heard.put)
    try:
        yield heard
    finally:
        await unsubscribe(sub)


async def unsubscribe(sub: Subscription) -> None:
    """End a subscription, whatever state its connection is in. While the server is away, too: else the next connection
    would have it again."""
    with contextlib.suppress(nats.errors.Error):
        await sub.unsubscribe()


async def close(nc: Client) -> None:
    """Close a connection, whatever state it is in."""
    # With the server away, nats-py writes what is pending to a transport that is closed, which uvloop refuses.
    with contextlib.suppress(nats.errors.Error, OSError, RuntimeError):
        await nc.close()


def explain(error: Exception, refusals: list[Exception], settings: Settings) -> ConnectionFailed:
    """The error a person should see for a connection that failed."""
    where = ", ".join(_without_password(server) for server in settings.servers)
    text = " ".join(str(e).lower() for e in [error, *refusals])
    if isinstance(error, nats.errors.AuthorizationError) or "authorization" in text or "authentication" in text:
        return AuthenticationFailed(f"{where} refused the credentials (set MODELNET_USER and MODELNET_PASSWORD)")
    return ConnectionFailed(f"no NATS server answers at {where} (start one with `modelnet up`, or set MODELNET_URL)")


def _without_password(url: str) -> str:
    scheme, _, rest = url.rpartition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if scheme else rest
