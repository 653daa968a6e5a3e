"""The console as a person uses it: in a headless Chromium, against a real network."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from modelnet.bus.embedded import EmbeddedNats, EmbeddedRedis
from modelnet.store.tenants import Tenants
from tests.console.browser import Browser, Page, why_not
from tests.gateway.doors import Gateway
from tests.network.stage import Network, fast
from tests.network.test_deaths import lone_process

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
CONTRACT = {
    "input": {
        "type": "object",
        "properties": {
            "text": {"type": "string", "title": "The text", "description": "What to say."},
            "times": {"type": "integer", "minimum": 1, "maximum": 9, "default": 2},
            "style": {"enum": ["plain", "loud"]},
            "words": {"type": "array", "items": {"type": "string"}},
            "deep": {"type": "object", "properties": {"flag": {"type": "boolean"}}},
            "wait": {"type": "boolean"},
        },
        "required": ["text"],
    },
    "output": {"type": "object"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A browser, or a reason why there is none."""
    if reason := await asyncio.to_thread(why_not):
        pytest.skip(reason)
    async with Browser() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(network: Network) -> Any:
    """One that says what it is told, after a gate if it is told to wait, and has a hostile way with words."""
    worker = network.worker("page-worker", software=HOSTILE, labels={"zone": HOSTILE})
    gate = asyncio.Event()
    gate.set()

    @worker.capability("page.say", contract=CONTRACT, price=3, description=HOSTILE)
    async def say(ctx: Any, input: Any) -> AsyncIterator[Any]:
        yield "begun "
        if input.get("wait"):
            await gate.wait()
        yield HOSTILE
        yield {"said": input}

    @worker.capability("page.fail", price=3)
    async def fail(ctx: Any, input: Any) -> Any:
        raise ValueError(HOSTILE)

    await network.join(worker)
    worker.gate = gate  # type: ignore[attr-defined]
    return worker


async def opened(browser: Browser, gateway: Gateway, hash: str = "", **options: Any) -> Page:
    """The console, once it has contact."""
    page = await browser.open(f"{gateway.url}/console#{hash}", **options)
    await page.until("document.querySelector('.contact.live') !== null")
    return page


async def closed(page: Page) -> None:
    """Close a page; nothing must have gone wrong on it, and nobody else's script have run."""
    title = await page.eval("document.title")
    said = await page.do("said")
    await page.do("close")
    assert "owned" not in title
    assert said == []


async def test_an_empty_network_says_what_to_do_next(
    browser: Browser, nats_server: EmbeddedNats, tmp_path: Path
) -> None:
    server = EmbeddedNats(tmp_path)
    await server.start()
    try:
        async with Network(fast(server.url)) as network:
            await network.negotiator()
            async with Gateway(network.config) as gateway:
                page = await opened(browser, gateway)
                await page.shows("No worker is on the network")
                await page.shows("modelnet work FILE")
                for hash, text in {
                    "/auctions": "No auction yet",
                    "/tasks": "No task yet",
                    "/market": "Nothing was bought yet",
                    "/letters": "None",
                    "/submit": "No capability is known yet",
                }.items():
                    await page.go(hash)
                    await page.shows(text)
                await closed(page)
    finally:
        await server.stop()


async def test_the_network_is_shown_as_it_lives(
    browser: Browser, gateway: Gateway, worker: Any, network: Network
) -> None:
    page = await opened(browser, gateway)
    await page.shows("page-worker")
    await network.client.run("page.say", {"text": "x"})
    await page.until("document.querySelector('.auction-line')?.innerText.includes('page-worker')")
    await page.until("[...document.querySelectorAll('tr.worker')].some((row) => row.innerText.includes('<script>'))")
    await page.go("/auctions")
    await page.until("document.querySelector('.auctions summary') !== null")
    await page.do("click", selector=".auctions summary")
    await page.shows("the only acceptable bid")
    await page.go("/market")
    await page.until("document.querySelector('.chart svg[aria-label^=\"page.say: \"]') !== null")
    await closed(page)


async def test_a_form_is_made_from_the_contract_and_the_answer_is_followed(
    browser: Browser, gateway: Gateway, worker: Any
) -> None:
    page = await opened(browser, gateway, "/submit")
    await page.until(
        "[...document.querySelectorAll('#capability option')].some((one) => one.textContent.includes('page.say'))"
    )
    await page.do("select", selector="#capability", value="page.say (1 worker)")
    await page.until("document.querySelector('#input-text') !== null")
    assert await page.eval("document.querySelector('#input-times').value") == "2"
    assert await page.eval("document.querySelector('#strategy').value") == "auction"
    unlabelled = (
        "[...document.querySelectorAll('main input, main select, main textarea')].filter((one) => !one.labels.length)"
    )
    assert await page.eval(f"{unlabelled}.length") == 0
    await page.do("fill", selector="#input-text", text="hello")
    await page.do("select", selector="#input-style", value="loud")
    await page.do("fill", selector="#input-words", text="a\nb")
    await page.do("click", selector="#input-deep-flag")
    await page.do("click", selector="#input-wait")
    worker.gate.clear()
    await page.do("click", selector="button.primary")
    await page.until("document.querySelector('.stream')?.textContent === 'begun '")
    worker.gate.set()
    await page.until("document.querySelector('.stream')?.textContent.endsWith('\">')")
    await page.until("document.querySelector('.output') !== null")
    said = await page.eval("JSON.parse(document.querySelector('.output').textContent).said")
    wanted = {"text": "hello", "times": 2, "style": "loud", "words": ["a", "b"], "deep": {"flag": True}, "wait": True}
    assert said == wanted
    await page.shows("page-worker said output")
    await page.shows("Auction for attempt 1")
    await closed(page)


async def test_what_is_wrong_with_an_input_is_told(browser: Browser, gateway: Gateway, worker: Any) -> None:
    page = await opened(browser, gateway, "/submit")
    await page.until("document.querySelector('#capability') !== null")
    await page.do("select", selector="#capability", value="page.fail (1 worker)")
    await page.do("click", selector="form button.plain")
    await page.do("fill", selector="#json", text="{nonsense")
    await page.do("click", selector="button.primary")
    await page.shows("The input is no JSON")
    await page.do("fill", selector="#json", text='{"any": 1}')
    await page.do("click", selector="button.primary")
    await page.shows("worker_error")
    await page.go("/letters")
    await page.until("document.querySelector('.letter') !== null")
    await page.do("click", selector=".letter")
    await page.until("document.querySelector('.letters pre')?.textContent.includes('page.fail')")
    before = await page.eval("document.querySelectorAll('.letter').length")
    await page.do("click", selector=".letters button.danger")
    await page.until(f"document.querySelectorAll('.letter').length === {before - 1}")
    await closed(page)


async def test_a_worker_that_dies_is_seen_to(
    browser: Browser, gateway: Gateway, network: Network, tmp_path: Path
) -> None:
    lone = lone_process(network, tmp_path, "page-lone")
    await lone.start()
    page = await opened(browser, gateway)
    await page.shows("page-lone")
    assert lone.pid is not None
    os.kill(lone.pid, signal.SIGKILL)
    await page.until("document.querySelector('tr.worker.lost')?.innerText.includes('page-lone')")
    await page.shows("1 lost")
    await closed(page)
    await lone.stop()


async def test_contact_that_is_lost_is_told_and_comes_back(
    browser: Browser, network: Network, worker: Any, gateway: Gateway
) -> None:
    first = Gateway(network.config)
    await first.__aenter__()
    page = await opened(browser, first)
    await page.shows("page-worker")
    await first.__aexit__()
    await page.shows("contact lost")
    await page.shows("Contact with the gateway is lost")
    async with Gateway(network.config, gateway_listen=first.config.gateway_listen):
        await page.until("document.querySelector('.contact.live') !== null")
        await page.lacks("Contact with the gateway is lost")
        await network.client.run("page.say", {"text": "x"})
        await page.until("document.querySelector('.auction-line')?.innerText.includes('page-worker')")
    await page.do("close")  # the requests that failed meanwhile are in its console


async def test_a_key_signs_in_and_a_wrong_one_is_told_of(
    browser: Browser, gateway: Gateway, worker: Any, redis_server: EmbeddedRedis
) -> None:
    async with Tenants(redis_server.url) as tenants:
        await tenants.create("page-tenant")
        _, key = await tenants.add_key("page-tenant")
    async with Gateway(gateway.config, gateway_keys="required", redis_url=redis_server.url) as shut:
        page = await opened(browser, shut)
        await page.shows("page-worker")
        await page.go("/submit")
        await page.shows("Sign in to submit tasks")
        for given, shown in (("mn-wrong", "What is shown is what anybody may see"), (key, "page-tenant")):
            await page.do("click", selector=".tools button:not(.icon)")
            await page.do("fill", selector="#key", text=given)
            await page.do("press", key="Enter")
            await page.shows(shown)
        await page.until("document.querySelector('#capability') !== null")
        await page.go("/ledger")
        await page.shows("no account 'page-tenant'")
        await page.do("click", selector=".tools button:not(.icon)")  # sign out
        await page.shows("Sign in to see accounts")
        await page.do("close")  # the refusals are in its console


async def test_it_is_used_with_keys_alone(browser: Browser, gateway: Gateway, worker: Any) -> None:
    page = await opened(browser, gateway)
    await page.shows("page-worker")
    await page.do("press", key="Tab")
    assert await page.eval("document.activeElement.className") == "skip"
    await page.do("press", key="Enter")
    assert await page.eval("document.activeElement.id") == "main"
    await page.go("/tasks")
    await page.until("document.activeElement.id === 'main' && document.querySelector('h1').textContent === 'Tasks'")
    nameless = (
        "[...document.querySelectorAll('a, button, summary, input')]"
        ".filter((one) => !(one.ariaLabel || one.labels?.[0]?.textContent || one.textContent).trim()).length"
    )
    assert await page.eval(nameless) == 0
    assert await page.eval("document.title") == "Tasks · modelnet"
    await closed(page)


_CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return { r, g, b, a };
  };
  const light = ({ r, g, b }) =>
    [r, g, b].map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
      .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = rgb(getComputedStyle(at).backgroundColor);
      if (found.a === 255) return found;
    }
    return { r: 255, g: 255, b: 255 };
  };
  const poor = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    const text = walk.currentNode.textContent.trim().slice(0, 30);
    if (!text || !element.checkVisibility() || element.closest(".unseen, .skip, noscript")) continue;
    const a = light(rgb(getComputedStyle(element).color)), b = light(behind(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${element.className} ${text}`);
  }
  return [...new Set(poor)];
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_stands_out_and_nothing_overflows_a_phone(
    browser: Browser, gateway: Gateway, worker: Any, network: Network, scheme: str
) -> None:
    task = await network.client.submit("page.say", {"text": "x"})
    await task.result()
    page = await opened(browser, gateway, scheme=scheme, width=375, height=800, motion="reduce")
    await page.shows("page-worker")
    paper = await page.eval("getComputedStyle(document.body).backgroundColor")
    for hash in ("", "/auctions", "/tasks", f"/task/default/{task.id}", "/market", "/ledger", "/letters", "/submit"):
        await page.go(hash)
        await page.until("document.querySelector('main h1') !== null")
        assert await page.eval(_CONTRAST) == [], hash
        assert await page.eval("document.documentElement.scrollWidth") <= 375, hash
    await page.do("click", selector="button.icon")
    await page.until(f"getComputedStyle(document.body).backgroundColor !== {paper!r}")
    await page.eval("location.reload()")
    await page.until("document.querySelector('.contact.live') !== null")
    assert await page.eval("getComputedStyle(document.body).backgroundColor") != paper
    await closed(page)
