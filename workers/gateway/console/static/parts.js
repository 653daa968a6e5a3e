// Small things that several pages show.

import { Component, html, useEffect, useState } from "./vendor/htm-preact.js";
import { duration, share } from "./format.js";

/** A component that is drawn again only when one of its properties is another object. */
export class Still extends Component {
  shouldComponentUpdate(next) {
    const now = this.props;
    for (const name in next) if (next[name] !== now[name]) return true;
    return false;
  }
}

export const link = {
  task: (tenant, task) => `#/task/${encodeURIComponent(tenant)}/${encodeURIComponent(task)}`,
  account: (name) => `#/ledger/${encodeURIComponent(name)}`,
};

/** What there is to do where there is nothing to see. */
export const Empty = ({ title, children }) => html`<div class="empty"><p class="empty-title">${title}</p>${children}</div>`;

export const Status = ({ status }) => html`<span class="status status-${status}">${status}</span>`;

export const Note = ({ kind = "info", children }) => html`<p class="note note-${kind}">${children}</p>`;

/** A line through values; gaps where there are none. */
export function Line({ values, width = 120, height = 28, label }) {
  const known = values.filter((value) => value !== null);
  const top = Math.max(...known, 0) || 1;
  const step = width / Math.max(values.length - 1, 1);
  let path = "";
  let pen = "M";
  values.forEach((value, n) => {
    if (value === null) {
      pen = "M";
      return;
    }
    path += `${pen}${(n * step).toFixed(1)} ${(height - 2 - (value / top) * (height - 4)).toFixed(1)}`;
    pen = "L";
  });
  return html`<svg class="line" viewBox="0 0 ${width} ${height}" preserveAspectRatio="none" role="img" aria-label=${label}>
    <path d=${path || "M0 0"} vector-effect="non-scaling-stroke" />
  </svg>`;
}

/** Scores of an auction's bids on one axis: the winner is the full dot. */
export function Scores({ auction }) {
  const bids = auction.bids;
  const scores = bids.map((bid) => bid.score);
  const low = Math.min(0, ...scores);
  const high = Math.max(1, ...scores);
  const at = (score) => 6 + ((score - low) / (high - low)) * 188;
  const label = bids.map((bid) => `${bid.worker} ${bid.score}`).join(", ") || "no bids";
  return html`<svg class="scores" viewBox="0 0 200 16" role="img" aria-label=${`scores: ${label}`}>
    <line x1="6" x2="194" y1="8" y2="8" />
    ${low < 0 && html`<line class="zero" x1=${at(0)} x2=${at(0)} y1="3" y2="13" />`}
    ${bids
      .slice()
      .reverse()
      .map(
        (bid) =>
          html`<circle
            cx=${at(bid.score)}
            cy="8"
            r=${bid.worker === auction.winner ? 5 : 3.5}
            class=${bid.worker === auction.winner ? "won" : bid.eligible ? "" : "out"}
          />`,
      )}
  </svg>`;
}

/** A worker's quality: what is sure of it, and up to what is likely. */
export function Quality({ served }) {
  const known = served.quality ?? null;
  if (known === null && served.claimed === null) return html`<span class="quiet">–</span>`;
  if (known === null) return html`<span class="quiet" title="Its own claim: nothing is known of it yet">${share(served.claimed)}<span class="claimed"> claimed</span></span>`;
  const title = `Surely ${share(known)}, on average ${share(served.mean)}, from outcomes that weigh ${served.cases}`;
  return html`<span class="quality" title=${title}>
    <span class="num">${share(known)}</span>
    <svg viewBox="0 0 60 6" aria-hidden="true">
      <rect class="track" width="60" height="6" rx="3" />
      <rect class="likely" width=${60 * served.mean} height="6" rx="3" />
      <rect class="sure" width=${60 * known} height="6" rx="3" />
    </svg>
  </span>`;
}

/** Bids of an auction as a table. `bids` may be the view's or a transcript's. */
export function Bids({ auction }) {
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Bids">
    <table>
      <thead>
        <tr><th scope="col">Worker</th><th scope="col" class="n">Asks</th><th scope="col" class="n">Expected</th><th scope="col" class="n">Quality</th><th scope="col" class="n">Score</th><th scope="col"><span class="unseen">Outcome</span></th></tr>
      </thead>
      <tbody>
        ${auction.bids.map(
          (bid) => html`<tr class=${bid.worker === auction.winner ? "won" : ""}>
            <th scope="row">${bid.worker}</th>
            <td class="n">${bid.price}</td>
            <td class="n">${duration(bid.expected_p50_ms || bid.p50_ms)}</td>
            <td class="n">${share(bid.quality)}</td>
            <td class="n">${bid.score.toFixed(1)}</td>
            <td>${bid.worker === auction.winner ? "won" : bid.eligible ? "" : html`<span class="quiet">not eligible</span>`}</td>
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/** Something that is fetched once: its value, or why there is none. `again` fetches it anew. */
export function useFetched(load, needs) {
  const [state, setState] = useState({ value: null, error: null, loading: true });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let wanted = true;
    load().then(
      (value) => wanted && setState({ value, error: null, loading: false }),
      (error) => wanted && setState((had) => ({ ...had, error, loading: false })),
    );
    return () => {
      wanted = false;
    };
  }, [...needs, turn]);
  return { ...state, again: () => setTurn((n) => n + 1) };
}
