// Auctions as they happen: who bid what, how that was scored, who won and why.

import { html, useState } from "./vendor/htm-preact.js";
import { clock, count, duration } from "./format.js";
import { hold, picture } from "./live.js";
import { Bids, Empty, Scores, Still, link } from "./parts.js";

/** One auction in a line or two, for the network's page. */
export class AuctionLine extends Still {
  render({ row }) {
    return html`<li class="auction-line">
      <span class="line-head"><span class="name">${row.capability}</span><time class="quiet num">${clock(row.at)}</time></span>
      ${row.bids.length > 1 && html`<${Scores} auction=${row} />`}
      <span class="line-foot">${row.winner ? html`<span><strong>${row.winner}</strong> for <span class="num">${row.price}</span></span>` : html`<span class="warn">no winner</span>`}<span class="quiet">${count(row.bid_count, "bid")}</span></span>
    </li>`;
  }
}

export function Auctions() {
  const rows = picture.feed.auctions;
  const sampled = picture.head.sampled;
  return html`<div class="page">
    <h1>Auctions</h1>
    <p class="lead">Sealed bids, scored by what the answer is worth less its price. The list stands still under the pointer.</p>
    ${sampled.auctions < 1 && html`<p class="note">More auctions are held than are read: ${Math.round(sampled.auctions * 100)} % of them are heard. Rates and counts are exact.</p>`}
    ${rows.length
      ? html`<ol class="auctions" onPointerEnter=${() => hold(true)} onPointerLeave=${() => hold(false)} onFocusIn=${() => hold(true)} onFocusOut=${() => hold(false)}>
          ${rows.map((row) => html`<${Auction} key=${row.id} row=${row} />`)}
        </ol>`
      : html`<${Empty} title="No auction yet"><p>Submit a task: who bids for it, and why one wins, shows here.</p><p><a class="button" href="#/submit">Submit a task</a></p><//>`}
  </div>`;
}

function Auction({ row }) {
  const [open, setOpen] = useState(false);
  return html`<li>
    <details open=${open} onToggle=${(event) => setOpen(event.currentTarget.open)}>
      <summary class="auction">
        <time class="quiet num">${clock(row.at)}</time>
        <span class="name">${row.capability}</span>
        <span class="result">${row.winner ? html`<strong>${row.winner}</strong> for <span class="num">${row.price}</span>` : html`<span class="warn">no winner</span>`}</span>
        <${Scores} auction=${row} />
        <span class="quiet num took">${count(row.bid_count, "bid")}, ${duration(row.window_ms)}</span>
      </summary>
      ${open && html`<${Whole} row=${row} />`}
    </details>
  </li>`;
}

function Whole({ row }) {
  return html`<div class="whole">
    <p class="why">${row.why}</p>
    ${row.strategy && html`<p class="quiet">${row.strategy}</p>`}
    ${row.bids.length > 0 && html`<${Bids} auction=${row} />`}
    <p class="quiet">
      ${row.closed_by === "offers" ? "Standing offers; nobody was asked." : `${row.asked} asked, closed by ${row.closed_by.replaceAll("_", " ")}.`}
      ${row.bid_count > row.bids.length && ` The best ${row.bids.length} bids are shown.`}
      ${row.refusals > 0 && ` ${count(row.refusals, "refusal")}.`} Budget ${row.budget}, attempt ${row.attempt}.
      ${row.tenant !== null && html` <a href=${link.task(row.tenant, row.task)}>The task</a>`}
    </p>
  </div>`;
}
