// Tasks: the list of what is under way, and the page of one: its text as it comes, its timeline, its tree.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { ApiError, events, get, post } from "./api.js";
import { clock, count, duration, number, short } from "./format.js";
import { hold, picture } from "./live.js";
import { Bids, Empty, Note, Status, Still, link, useFetched } from "./parts.js";

const FILTERS = ["all", "open", "completed", "failed"];
const ENDED = ["completed", "failed", "expired", "cancelled"];

export function Tasks() {
  const [filter, setFilter] = useState("all");
  const rows = picture.feed.tasks.filter((row) => fits(row, filter));
  return html`<div class="page">
    <h1>Tasks</h1>
    <p class="lead">${number(picture.head.open)} open. ${picture.head.sampled.rows ? "More come than can be read, so some of them are listed; each that is listed is followed to its end." : "All that came while this page was open, and those before it that are still heard of."}</p>
    <fieldset class="choices"><legend class="unseen">Which tasks</legend>${FILTERS.map((name) => html`<label><input type="radio" name="filter" checked=${filter === name} onChange=${() => setFilter(name)} /> <span>${name}</span></label>`)}</fieldset>
    ${rows.length
      ? html`<div class="scroll" tabindex="0" role="region" aria-label="Tasks" onPointerEnter=${() => hold(true)} onPointerLeave=${() => hold(false)}>
          <table class="tasks">
            <thead><tr><th scope="col">Began</th><th scope="col">Capability</th><th scope="col">Status</th><th scope="col">Worker</th><th scope="col" class="n">Price</th><th scope="col" class="n">Took</th><th scope="col">Task</th></tr></thead>
            <tbody>${rows.slice(0, 150).map((row) => html`<${TaskRow} key=${row.key} row=${row} />`)}</tbody>
          </table>
        </div>`
      : html`<${Empty} title=${filter === "all" ? "No task yet" : `No task is ${filter}`}><p><a class="button" href="#/submit">Submit a task</a></p><//>`}
  </div>`;
}

function fits(row, filter) {
  if (filter === "open") return !ENDED.includes(row.status);
  if (filter === "failed") return ["failed", "expired", "cancelled"].includes(row.status);
  return filter === "all" || row.status === filter;
}

class TaskRow extends Still {
  render({ row }) {
    return html`<tr>
      <td class="num quiet">${clock(row.at)}</td>
      <td>${row.capability || html`<span class="quiet">–</span>`}</td>
      <td><${Status} status=${row.status} />${row.note && html` <span class="quiet cut" title=${row.note}>${row.note}</span>`}</td>
      <td>${row.worker || html`<span class="quiet">–</span>`}${row.attempt > 1 && html` <span class="quiet">attempt ${row.attempt}</span>`}</td>
      <td class="n">${number(row.price)}</td>
      <td class="n">${duration(row.total_ms)}</td>
      <td class="num">${row.tenant !== null ? html`<a href=${link.task(row.tenant, row.task)} title=${row.task}>${short(row.task)}</a>` : html`<span class="quiet">another’s</span>`}</td>
    </tr>`;
  }
}

export function Task({ tenant, task }) {
  const [stream, setStream] = useState({ text: "", final: null, news: 0, error: null });
  const path = `console/api/tasks/${encodeURIComponent(tenant)}/${encodeURIComponent(task)}`;
  useEffect(() => follow(path, setStream), [path]);
  const record = useFetched(() => get(path), [path, stream.news, stream.final !== null]);
  const found = record.value;
  const final = stream.final || found?.final;
  if (record.error && !found) {
    return html`<div class="page"><h1>Task</h1><${Empty} title=${record.error.message}><p>${record.error.status === 401 ? "Sign in to see your tasks." : "Records are kept for 48 hours after a task’s end."}</p><//></div>`;
  }
  const capability = final?.capability || found?.auctions[0]?.capability || found?.parts[0]?.auctions[0]?.capability || "task";
  return html`<div class="page task">
    <p class="crumb"><a href="#/tasks">Tasks</a></p>
    <h1>${capability}</h1>
    <p class="lead"><${Status} status=${final ? final.status : "running"} />
      ${final?.worker && html` by <strong>${final.worker}</strong>`}${final?.price !== null && final?.price !== undefined && ` for ${number(final.price)}`}${final && `, in ${duration(final.timings.total_ms)}`}
      <span class="quiet"> · ${tenant} / <span class="id">${task}</span></span>
      ${!final && found && html` <button onClick=${() => post(`${path}/cancel`)}>Cancel</button>`}</p>
    ${final?.error && html`<${Note} kind="bad"><strong>${final.error.code}</strong> ${final.error.message}<//>`}
    ${stream.error && html`<${Note} kind="warn">${stream.error}<//>`}
    <${Answer} text=${stream.text} final=${final} parts=${found?.parts.length || 0} />
    ${found && html`<${Tree} found=${found} tenant=${tenant} /><${Timeline} events=${found.timeline} /><${Attempts} attempts=${found.attempts} />
      ${found.auctions.map((auction) => html`<section key=${auction.auction}><h2>Auction for attempt ${auction.attempt}</h2><p class="why">${auction.why}</p>${auction.strategy && html`<p class="quiet">${auction.strategy}</p>`}<${Bids} auction=${auction} />${Object.keys(auction.refusals).length > 0 && html`<p class="quiet">Refused: ${Object.entries(auction.refusals).map(([worker, reason]) => `${worker} (${reason})`).join(", ")}</p>`}</section>`)}`}
  </div>`;
}

/** Follow a task's stream until its end, however often contact is lost: each time it comes again from its start. */
function follow(path, set) {
  const stop = new AbortController();
  const run = async () => {
    let wait = 250;
    while (!stop.signal.aborted) {
      let text = "";
      let ended = false;
      try {
        await events(
          `${path}/stream`,
          (event, data) => {
            if (event === "text") text += data.text;
            else if (event === "reset") text = data.text;
            else if (event === "final") ended = true;
            else if (event === "failed") throw new ApiError(0, data.code, data.message);
            const shown = text;
            set((had) => ({ text: shown, final: event === "final" ? data : had.final, news: had.news + (event === "news" || event === "reset"), error: null }));
          },
          stop.signal,
        );
        if (ended) return;
      } catch (error) {
        if (stop.signal.aborted) return;
        if (error.status >= 400 && error.status < 500) return;
        set((had) => ({ ...had, error: "Contact with the stream was lost; it is read again." }));
      }
      await new Promise((done) => setTimeout(done, wait));
      wait = Math.min(wait * 2, 5000);
    }
  };
  run();
  return () => stop.abort();
}

function Answer({ text, final, parts }) {
  const box = useRef(null);
  useEffect(() => {
    const pane = box.current;
    if (pane && pane.scrollHeight - pane.scrollTop - pane.clientHeight < 80) pane.scrollTop = pane.scrollHeight;
  }, [text]);
  const output = final?.output;
  const same = output && Object.keys(output).length === 1 && output.text === text;
  return html`<section aria-label="Answer">
    ${text && html`<pre class="stream" ref=${box} tabindex="0" aria-label="The answer's text">${text}${!final && html`<span class="caret" aria-hidden="true"></span>`}</pre>`}
    ${!text && !final && html`<p class="quiet">${parts ? "Its parts are at work: each has a stream of its own." : "No text yet."}</p>`}
    ${output && !same && html`<pre class="output" tabindex="0" aria-label="Output">${JSON.stringify(output, null, 2)}</pre>`}
    ${final?.output_bytes && html`<p class="quiet">The output has ${number(final.output_bytes)} bytes: <code>modelnet result ${final.task}</code> prints it.</p>`}
  </section>`;
}

function Tree({ found, tenant }) {
  if (!found.parts.length) return null;
  return html`<section><h2>${count(found.parts.length, "part")}</h2><${Branch} parts=${found.parts} tenant=${tenant} /></section>`;
}

function Branch({ parts, tenant }) {
  return html`<ul class="tree">
    ${parts.map(
      (part) => html`<li key=${part.task}>
        <a href=${link.task(tenant, part.task)}>${short(part.task)}</a> <${Status} status=${part.final ? part.final.status : part.attempts.length ? "running" : "waiting"} />
        ${part.final ? html` ${part.final.worker} <span class="quiet num">${part.final.price !== null && `for ${number(part.final.price)}, `}${duration(part.final.timings.total_ms)}</span>` : html` ${part.attempts.at(-1)?.worker}`}
        ${part.auctions.length > 0 && html`<details><summary>How it went</summary>
          <p class="why">${part.auctions.at(-1).why}</p><${Bids} auction=${part.auctions.at(-1)} /><${Timeline} events=${part.timeline} />
        </details>`}
        ${part.parts.length > 0 && html`<${Branch} parts=${part.parts} tenant=${tenant} />`}
      </li>`,
    )}
  </ul>`;
}

function Timeline({ events: list }) {
  if (!list.length) return null;
  const end = list.at(-1).ms || 1;
  return html`<section>
    <h2>Timeline</h2>
    <ol class="timeline">
      ${list.map(
        (one, n) => html`<li key=${n}>
          <span class="num quiet">${one.ms.toFixed(1)} ms</span>
          <svg viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true"><rect class="track" width="100" height="4" /><rect class="load" width=${(100 * one.ms) / end} height="4" /></svg>
          <span>${one.event}</span>
        </li>`,
      )}
    </ol>
  </section>`;
}

function Attempts({ attempts }) {
  if (!attempts.length) return null;
  return html`<section>
    <h2>${count(attempts.length, "attempt")}</h2>
    <div class="scroll" tabindex="0" role="region" aria-label="Attempts">
      <table>
        <thead><tr><th scope="col" class="n">No.</th><th scope="col">Worker</th><th scope="col" class="n">Price</th><th scope="col">Outcome</th><th scope="col" class="n">Events</th><th scope="col" class="n">Ran</th></tr></thead>
        <tbody>${attempts.map((one) => html`<tr key=${one.attempt}><td class="n">${one.attempt}</td><th scope="row">${one.worker}</th><td class="n">${one.price}</td><td>${one.error ? html`<span class="bad">${one.error.code}</span> <span class="quiet">${one.error.message}</span>` : one.outcome}</td><td class="n">${one.events}</td><td class="n">${duration(one.usage?.run_ms)}</td></tr>`)}</tbody>
      </table>
    </div>
  </section>`;
}
