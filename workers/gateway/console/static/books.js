// The ledger and the dead letters: for an operator all of them, for a tenant its own.

import { html, useState } from "./vendor/htm-preact.js";
import { get, post } from "./api.js";
import { count, moment, number, short } from "./format.js";
import { picture } from "./live.js";
import { Empty, Note, link, useFetched } from "./parts.js";

const SignedOut = ({ what }) => html`<${Empty} title=${`Sign in to see ${what}`}><p>The key of your tenant shows what is yours. <code>modelnet tenant</code> makes keys.</p><//>`;

export function Ledger() {
  const away = picture.head.notes.ledger;
  if (!picture.me) return html`<div class="page"><h1>Ledger</h1><${SignedOut} what="accounts" /></div>`;
  if (!picture.me.operator) return html`<${Account} name=${picture.me.tenant} />`;
  const accounts = picture.ledger?.accounts || [];
  const held = accounts.reduce((sum, one) => sum + one.held, 0);
  return html`<div class="page">
    <h1>Ledger</h1>
    ${away && html`<${Note} kind="warn">${away}${accounts.length > 0 && " What is shown is what was known before."}<//>`}
    ${accounts.length
      ? html`<p class="lead">${number(picture.ledger.minted)} micro-credits were granted; ${number(held)} are held for tasks that have not ended.</p>
          <div class="scroll" tabindex="0" role="region" aria-label="Accounts"><table>
            <thead><tr><th scope="col">Account</th><th scope="col" class="n">Balance</th><th scope="col" class="n">Held</th><th scope="col" class="n">Holds</th><th scope="col">Its tasks</th></tr></thead>
            <tbody>${accounts.map((one) => html`<tr key=${one.account}><th scope="row"><a href=${link.account(one.account)}>${one.account}</a></th><td class="n">${number(one.balance)}</td><td class="n">${number(one.held)}</td><td class="n">${number(one.holds)}</td><td>${one.charged ? "are charged" : html`<span class="quiet">are free</span>`}</td></tr>`)}</tbody>
          </table></div>`
      : !away && html`<${Empty} title="No account yet"><p>Every tenant is served for nothing until it has an account: <code>modelnet credit TENANT AMOUNT</code> opens one.</p><//>`}
  </div>`;
}

export function Account({ name }) {
  const { value: found, error, again } = useFetched(() => get(`console/api/accounts/${encodeURIComponent(name)}`), [name]);
  return html`<div class="page">
    <p class="crumb"><a href="#/ledger">Ledger</a></p>
    <h1>${name}</h1>
    ${error && html`<${Empty} title=${error.message} />`}
    ${found && html`<p class="lead"><strong class="num">${number(found.balance)}</strong> micro-credits, <span class="num">${number(found.held)}</span> more held for ${count(found.holds, "task")}. ${found.metered ? "Its tasks are charged." : "Its tasks are free."} <button onClick=${again}>Look again</button></p>
      ${found.limits.length > 0 && html`<ul class="facts-list">${found.limits.map((one) => html`<li key=${one.window}>This ${one.window}: ${number(one.spent)} spent or held${one.amount !== null ? ` of ${number(one.amount)}` : ", no limit"}</li>`)}</ul>`}
      <${Holds} holds=${found.open_holds} tenant=${name} />
      <h2>Statement</h2>
      ${found.entries.length ? html`<div class="scroll" tabindex="0" role="region" aria-label="Statement"><table>
        <thead><tr><th scope="col">When</th><th scope="col">What</th><th scope="col" class="n">Amount</th><th scope="col" class="n">Balance</th><th scope="col">With</th><th scope="col">Task</th></tr></thead>
        <tbody>${found.entries.map((one, n) => html`<tr key=${n}><td class="num quiet">${moment(one.at)}</td><td>${one.kind}</td><td class="n">${one.amount > 0 ? "+" : ""}${number(one.amount)}</td><td class="n">${number(one.balance)}</td><td>${one.other}</td><td class="num" title=${one.task}>${short(one.task)}</td></tr>`)}</tbody>
      </table></div>` : html`<p class="quiet">Nothing has moved yet.</p>`}`}
  </div>`;
}

function Holds({ holds, tenant }) {
  if (!holds.length) return null;
  return html`<h2>Held now</h2><div class="scroll" tabindex="0" role="region" aria-label="Holds"><table>
    <thead><tr><th scope="col">Since</th><th scope="col" class="n">Amount</th><th scope="col">For</th></tr></thead>
    <tbody>${holds.map((one) => html`<tr key=${one.task}><td class="num quiet">${moment(one.taken_at)}</td><td class="n">${number(one.amount)}</td><td class="num"><a href=${link.task(one.tenant || tenant, one.task)}>${short(one.task)}</a>${one.worker && html` <span class="quiet">deposit of ${one.worker}</span>`}</td></tr>`)}</tbody>
  </table></div>`;
}

export function Letters() {
  const known = picture.head.dead_letters;
  const { value: found, error, again } = useFetched(() => (picture.me ? get("console/api/letters") : Promise.resolve(null)), [known, picture.me]);
  return html`<div class="page">
    <h1>Dead letters</h1>
    <p class="lead">Messages that could not be read, and tasks that broke whoever tried them. They lie for 30 days.</p>
    ${error && html`<${Note} kind="bad">${error.message}<//>`}
    ${!picture.me && html`<${SignedOut} what="dead letters" />`}
    ${found && (found.length ? html`<ul class="letters">${found.slice().reverse().map((one) => html`<${Letter} key=${one.number} one=${one} changed=${again} />`)}</ul>` : html`<${Empty} title="None"><p>Everything that came could be handled.</p><//>`)}
  </div>`;
}

function Letter({ one, changed }) {
  const [open, setOpen] = useState(false);
  const [whole, setWhole] = useState(null);
  const [said, setSaid] = useState(null);
  const path = `console/api/letters/${one.number}`;
  const toggle = (event) => {
    setOpen(event.currentTarget.open);
    if (event.currentTarget.open && !whole) get(path).then(setWhole, (error) => setSaid(error.message));
  };
  const act = (what) => () =>
    post(`${path}/${what}`).then(
      (done) => {
        if (done.task) location.hash = link.task(done.tenant, done.task);
        else changed();
      },
      (error) => setSaid(error.message),
    );
  return html`<li>
    <details open=${open} onToggle=${toggle}>
      <summary class="letter"><span class="num quiet">${one.number}</span><span class="reason">${one.reason}</span><span class="quiet num">${moment(one.time)}</span></summary>
      <p class="quiet"><span class="id">${one.subject}</span> · ${number(one.bytes)} bytes</p>
      ${whole && html`<pre class="output" tabindex="0" aria-label="Body">${whole.body ?? whole.body_hex}${whole.cut ? "\n…" : ""}</pre>`}
      <p class="actions">${one.tenant && html`<button onClick=${act("retry")}>Try again</button>`} <button class="danger" onClick=${act("drop")}>Drop for good</button>${said && html` <span class="bad" role="alert">${said}</span>`}</p>
    </details>
  </li>`;
}
