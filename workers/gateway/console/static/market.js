// The market's last ten minutes: what each capability cost, and how much of it was bought.

import { html } from "./vendor/htm-preact.js";
import { clock, duration, number } from "./format.js";
import { picture } from "./live.js";
import { Empty } from "./parts.js";

const MOST = 120; // bins of five seconds
const LEAST = 24;
const WIDTH = 600;
const PRICES = 120;
const BARS = 36;

export function Market() {
  const now = Math.floor(Date.now() / 5000) * 5;
  const names = [...picture.history.keys()].sort();
  const oldest = Math.min(...names.map((name) => Math.min(...picture.history.get(name).keys())));
  const bins = Math.min(Math.max((now - oldest) / 5 + 1, LEAST), MOST);
  return html`<div class="page">
    <h1>Market</h1>
    <p class="lead">The last minutes, ten at most. The line is the mean price paid in five seconds, the band from the lowest to the highest; the bars below are awards.</p>
    ${picture.head.sampled.auctions < 1 && html`<p class="note">${Math.round(picture.head.sampled.auctions * 100)} % of the auctions are heard: prices are of those, and awards count those.</p>`}
    ${names.length
      ? html`<div class="charts">${names.map((name) => html`<${Chart} key=${name} name=${name} bins=${picture.history.get(name)} now=${now} count=${bins} />`)}</div>`
      : html`<${Empty} title="Nothing was bought yet"><p>Prices show here once auctions have been won.</p><//>`}
  </div>`;
}

function Chart({ name, bins, now, count }) {
  const first = now - (count - 1) * 5;
  const list = [...bins.values()].filter((bin) => bin.at >= first).sort((a, b) => a.at - b.at);
  const sold = list.filter((bin) => bin.n);
  const top = Math.max(...sold.map((bin) => bin.high), 1);
  const most = Math.max(...list.map((bin) => bin.n), 1);
  const x = (bin) => ((bin.at - first) / 5 / (count - 1)) * WIDTH;
  const y = (price) => PRICES - 4 - (price / top) * (PRICES - 12);
  const width = Math.min((0.7 * WIDTH) / count, 12);
  const runs = [];
  for (const bin of sold) {
    const run = runs.at(-1);
    if (run && bin.at - run.at(-1).at <= 15) run.push(bin);
    else runs.push([bin]);
  }
  const awards = sold.reduce((sum, bin) => sum + bin.n, 0);
  const mean = awards ? sold.reduce((sum, bin) => sum + bin.n * bin.price, 0) / awards : null;
  const last = sold.at(-1);
  const label = `${name}: ${awards} awards at a mean price of ${number(mean)}, lately ${number(last?.price)}`;
  return html`<figure class="chart">
    <figcaption><span class="name">${name}</span><span class="quiet num">${number(mean === null ? null : Math.round(mean * 10) / 10)} mean · ${number(awards)} awards · ${duration(last?.ms)}</span></figcaption>
    <span class="top num" aria-hidden="true">${number(top)}</span>
    <svg viewBox="0 0 ${WIDTH} ${PRICES + BARS}" preserveAspectRatio="none" role="img" aria-label=${label}>
      <line class="axis" x1="0" x2=${WIDTH} y1=${PRICES - 4} y2=${PRICES - 4} />
      ${runs.map((run) => html`<path class="band" d=${`M${run.map((bin) => `${x(bin)} ${y(bin.high)}`).join("L")}L${run.slice().reverse().map((bin) => `${x(bin)} ${y(bin.low)}`).join("L")}Z`} />`)}
      ${runs.map((run) => (run.length > 1 ? html`<path class="mean" d=${`M${run.map((bin) => `${x(bin)} ${y(bin.price)}`).join("L")}`} />` : html`<path class="mean dot" d=${`M${x(run[0])} ${y(run[0].price)}h0.01`} />`))}
      ${list.map((bin) => bin.n > 0 && html`<rect class="bar" x=${x(bin) - width / 2} width=${width} y=${PRICES + BARS - (bin.n / most) * BARS} height=${(bin.n / most) * BARS} />`)}
    </svg>
    <p class="scale num" aria-hidden="true"><span>${clock(first)}</span><span>${clock(now)}</span></p>
    <details class="as-table"><summary>As a table</summary>
      <div class="scroll" tabindex="0" role="region" aria-label=${`Prices of ${name}`}><table>
        <thead><tr><th scope="col">From</th><th scope="col" class="n">Awards</th><th scope="col" class="n">Mean</th><th scope="col" class="n">Low</th><th scope="col" class="n">High</th><th scope="col" class="n">Unsold</th><th scope="col" class="n">Median time</th></tr></thead>
        <tbody>${list.slice(-24).reverse().map((bin) => html`<tr key=${bin.at}><td class="num">${clock(bin.at)}</td><td class="n">${bin.n}</td><td class="n">${number(bin.price)}</td><td class="n">${number(bin.low)}</td><td class="n">${number(bin.high)}</td><td class="n">${bin.unsold}</td><td class="n">${duration(bin.ms)}</td></tr>`)}</tbody>
      </table></div>
    </details>
  </figure>`;
}
