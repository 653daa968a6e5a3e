// The network as it lives: rates, capabilities, and the workers of each by load, price and reputation.

import { html, useState } from "./vendor/htm-preact.js";
import { count, duration, number } from "./format.js";
import { picture } from "./live.js";
import { Empty, Line, Quality, Still } from "./parts.js";
import { AuctionLine } from "./auctions.js";

const SHOWN = 12;
const RECENT_S = 60;

export function Network() {
  const groups = byCapability();
  return html`
    <h1 class="unseen">Network</h1>
    <${Figures} />
    <div class="columns">
      <section aria-labelledby="workers-title">
        <h2 id="workers-title">Workers</h2>
        ${groups.length
          ? groups.map((group, n) => html`<${Capability} key=${group.pattern} group=${group} first=${n === 0} opened=${picture.workers.size <= 24} />`)
          : html`<${Empty} title="No worker is on the network">
              <p>Put one on it with <code>modelnet work FILE</code>, or start a whole network with <code>modelnet up</code>.</p>
            <//>`}
      </section>
      <section class="aside" aria-labelledby="feed-title">
        <h2 id="feed-title">Auctions <a class="more" href="#/auctions">all</a></h2>
        ${picture.feed.auctions.length
          ? html`<ol class="feed">${picture.feed.auctions.slice(0, 9).map((row) => html`<${AuctionLine} key=${row.id} row=${row} />`)}</ol>`
          : html`<${Empty} title="Nothing has been asked for yet"><p>Submit a task: its auction shows here within milliseconds.</p><p><a class="button" href="#/submit">Submit a task</a></p><//>`}
      </section>
    </div>
  `;
}

function Figures() {
  const head = picture.head;
  const bins = totals();
  const recent = bins.filter((bin) => bin.at > Date.now() / 1000 - RECENT_S);
  const sum = (name) => recent.reduce((all, bin) => all + bin[name], 0);
  const ended = sum("ok") + sum("bad");
  const awarded = sum("n");
  const price = awarded ? recent.reduce((all, bin) => all + bin.paid, 0) / awarded : null;
  const rates = bins.map((bin) => bin.n / 5);
  return html`<dl class="figures">
    <div class="wide"><dt>tasks a second</dt><dd>${number(head.tasks_s)}</dd><${Line} values=${rates.slice(-60)} label="Awards a second in the last five minutes" /></div>
    <div><dt>${head.lost ? html`workers, <span class="bad">${number(head.lost)} lost</span>` : "workers"}</dt><dd>${number(head.workers)}</dd></div>
    <div><dt>of ${count(head.slots, "slot")} busy</dt><dd>${number(head.running)}${head.queued > 0 && html`<small>+${number(head.queued)}</small>`}</dd></div>
    <div><dt>open</dt><dd>${number(head.open)}</dd></div>
    <div><dt>mean price</dt><dd>${number(price === null ? null : Math.round(price * 10) / 10)}</dd></div>
    <div><dt>completed</dt><dd>${ended ? `${Math.floor((1000 * sum("ok")) / ended) / 10}` : "–"}${ended > 0 && html`<small>%</small>`}</dd></div>
  </dl>`;
}

/** All capabilities' bins added up, the oldest first. */
function totals() {
  const found = new Map();
  for (const bins of picture.history.values()) {
    for (const bin of bins.values()) {
      const all = found.get(bin.at) || { at: bin.at, n: 0, ok: 0, bad: 0, paid: 0 };
      all.n += bin.n;
      all.ok += bin.ok;
      all.bad += bin.bad;
      all.paid += (bin.price || 0) * bin.n;
      found.set(bin.at, all);
    }
  }
  return [...found.values()].sort((a, b) => a.at - b.at);
}

function byCapability() {
  const groups = new Map();
  for (const worker of picture.workers.values()) {
    for (const served of worker.capabilities) {
      let group = groups.get(served.pattern);
      if (!group) groups.set(served.pattern, (group = { pattern: served.pattern, members: [] }));
      group.members.push({ worker, served, pulse: picture.pulses.get(worker.id) || NOTHING });
    }
  }
  const found = [...groups.values()].sort((a, b) => names.compare(a.pattern, b.pattern));
  for (const group of found) group.members.sort((a, b) => names.compare(a.worker.id, b.worker.id));
  return found;
}

const names = new Intl.Collator("en", { numeric: true });
const NOTHING = { running: 0, queued: 0, won: 0, earned: 0 };

function Capability({ group, first, opened }) {
  const [open, setOpen] = useState(opened);
  const [all, setAll] = useState(false);
  const live = group.members.filter(({ worker }) => worker.state === "live" || worker.state === "draining");
  const slots = live.reduce((sum, one) => sum + one.worker.slots, 0);
  const running = live.reduce((sum, one) => sum + one.pulse.running, 0);
  const prices = live.map((one) => one.served.price).filter((price) => price !== null && price !== undefined);
  const low = Math.min(...prices);
  const high = Math.max(...prices);
  const span = !prices.length ? "priced by input" : low === high ? `price ${low}` : `prices ${low}–${high}`;
  const shown = all ? group.members : group.members.slice(0, SHOWN);
  return html`<details class="capability" open=${open} onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>
      <span class="name">${group.pattern}</span>
      <span class="facts"><span class="num">${running}</span> of <span class="num">${slots}</span> busy · ${span} · ${count(live.length, "worker")}</span>
      ${group.members.length > 1 && html`<${Field} shades=${group.members.slice(0, 400).map(({ worker, pulse }) => shade(worker, pulse)).join(" ")} />`}
    </summary>
    ${open &&
    html`<div class="scroll" tabindex="0" role="region" aria-label=${`Workers for ${group.pattern}`}>
      <table class=${first ? "workers first" : "workers"}>
        <colgroup><col class="who-column" /><col class="busy-column" /><col /><col /><col class="quality-column" /><col class="tail" /><col class="tail" /></colgroup>
        <thead>
          <tr>
            <th scope="col">Worker</th><th scope="col">Busy</th><th scope="col" class="n">Price</th><th scope="col" class="n">Median</th><th scope="col">Quality</th><th scope="col" class="n">Won</th><th scope="col" class="n">Earned</th>
          </tr>
        </thead>
        <tbody>${shown.map((one) => html`<${WorkerRow} key=${one.worker.id} ...${one} />`)}</tbody>
      </table>
    </div>
    ${group.members.length > SHOWN &&
    html`<button class="plain" onClick=${() => setAll(!all)}>${all ? "Show fewer" : `Show all ${number(group.members.length)}`}</button>`}`}
  </details>`;
}

/** One mark a worker, shaded by its load. What it tells stands in the table too. */
class Field extends Still {
  render({ shades }) {
    return html`<span class="field" aria-hidden="true">${shades.split(" ").map((one) => html`<i class=${one}></i>`)}</span>`;
  }
}

function shade(worker, pulse) {
  if (worker.state !== "live") return worker.state;
  if (!pulse.running) return "idle";
  const load = pulse.running / worker.slots;
  return load > 0.99 ? "full" : load > 0.5 ? "half" : "some";
}

class WorkerRow extends Still {
  render({ worker, served, pulse }) {
    const away = worker.state === "lost" || worker.state === "left";
    const said = [worker.software, ...Object.entries(worker.labels).map(([key, value]) => `${key}=${value}`)].filter(Boolean).join(", ");
    return html`<tr class="worker ${worker.state}">
      <th scope="row">
        <span class="id">${worker.id}</span>
        <span class="quiet under" title=${said}>${worker.owner}${served.model && ` · ${served.model}`}${!served.model && worker.software && ` · ${worker.software}`}</span>
      </th>
      <td>${away || worker.state === "draining" ? html`<span class="state">${worker.state}</span>` : html`<${Busy} worker=${worker} pulse=${pulse} />`}</td>
      <td class="n">${served.price ?? html`<span class="quiet">by input</span>`}</td>
      <td class="n">${duration(served.p50_ms)}</td>
      <td><${Quality} served=${served} /></td>
      <td class="n">${number(pulse.won)}</td>
      <td class="n">${number(pulse.earned)}</td>
    </tr>`;
  }
}

function Busy({ worker, pulse }) {
  const full = Math.min(pulse.running / worker.slots, 1);
  return html`<span class="busy">
    <svg viewBox="0 0 60 6" aria-hidden="true"><rect class="track" width="60" height="6" rx="3" /><rect class="load" width=${60 * full} height="6" rx="3" /></svg>
    <span class="num">${pulse.running}/${worker.slots}${pulse.queued > 0 && html`<small> +${pulse.queued}</small>`}</span>
  </span>`;
}
