// The console: which page is shown, whether there is contact, who is signed in, and the theme.

import { html, render, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { hasKey, setKey } from "./api.js";
import { Auctions } from "./auctions.js";
import { Account, Ledger, Letters } from "./books.js";
import { number } from "./format.js";
import { connect, hold, onChange, picture } from "./live.js";
import { Market } from "./market.js";
import { Network } from "./network.js";
import { Submit } from "./submit.js";
import { Task, Tasks } from "./tasks.js";

const PAGES = { "": Network, auctions: Auctions, tasks: Tasks, market: Market, ledger: Ledger, letters: Letters, submit: Submit };
const NAMES = { "": "Network", auctions: "Auctions", tasks: "Tasks", market: "Market", ledger: "Ledger", letters: "Dead letters", submit: "Submit" };

function route() {
  const [page = "", ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  return { page, rest };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function App() {
  const [, draw] = useState(0);
  const [where, setWhere] = useState(route);
  const main = useRef(null);
  useEffect(() => onChange(() => draw((n) => n + 1)), []);
  useEffect(() => {
    const go = () => {
      hold(false);
      setWhere(route());
      window.scrollTo(0, 0);
      main.current?.focus({ preventScroll: true });
    };
    addEventListener("hashchange", go);
    return () => removeEventListener("hashchange", go);
  }, []);
  const { page, rest } = where;
  const title = page === "task" ? "Task" : NAMES[page] || "Network";
  useEffect(() => {
    document.title = page ? `${title} · modelnet` : "modelnet";
  }, [title]);
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); main.current?.focus(); }}>Skip to the content</a>
    <header>
      <a class="mark" href="#/">modelnet</a>
      <nav aria-label="Pages">${Object.entries(NAMES).map(([name, text]) => html`<a key=${name} href=${`#/${name}`} aria-current=${page === name || (page === "task" && name === "tasks") ? "page" : undefined}>${text}${name === "letters" && picture.head?.dead_letters > 0 && html` <span class="badge">${number(picture.head.dead_letters)}</span>`}</a>`)}</nav>
      <div class="tools"><${Contact} /><${Theme} /><${Identity} /></div>
    </header>
    <${Away} />
    <main id="main" ref=${main} tabindex="-1">${picture.head ? html`<${Content} page=${page} rest=${rest} />` : html`<p class="loading">${picture.contact === "lost" ? "The gateway does not answer; it is tried again." : "Looking at the network…"}</p>`}</main>
  `;
}

function Content({ page, rest }) {
  if (page === "task" && rest.length >= 2) return html`<${Task} key=${rest.join("/")} tenant=${rest[0]} task=${rest[1]} />`;
  if (page === "ledger" && rest.length) return html`<${Account} key=${rest[0]} name=${rest[0]} />`;
  const Page = PAGES[page] || Network;
  return html`<${Page} />`;
}

function Contact() {
  const words = { live: "live", connecting: "connecting", lost: "contact lost" };
  return html`<span class="contact ${picture.contact}" role="status"><i aria-hidden="true"></i>${words[picture.contact]}</span>`;
}

/** What is away, said once for all pages. */
function Away() {
  const notes = Object.entries(picture.head?.notes || {});
  if (picture.contact === "lost" && picture.head) notes.unshift(["gateway", "Contact with the gateway is lost. What is shown is from before; it comes back by itself."]);
  if (picture.refused) notes.unshift(["key", `${picture.refused} What is shown is what anybody may see.`]);
  if (!notes.length) return null;
  return html`<div class="away" role="status">${notes.map(([what, text]) => html`<p key=${what}><strong>${what}</strong> ${text}</p>`)}</div>`;
}

function Theme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const [theme, setTheme] = useState(document.documentElement.dataset.theme || system);
  const other = theme === "dark" ? "light" : "dark";
  const change = () => {
    document.documentElement.dataset.theme = other;
    try {
      localStorage.setItem("modelnet-theme", other);
    } catch {
      // it lasts as long as the page
    }
    setTheme(other);
  };
  return html`<button class="icon" onClick=${change} aria-label=${`Change to the ${other} theme`} title=${`Change to the ${other} theme`}>
    <svg viewBox="0 0 20 20" aria-hidden="true"><circle cx="10" cy="10" r="6.5" /><path d="M10 3.5a6.5 6.5 0 0 1 0 13z" /></svg>
  </button>`;
}

function Identity() {
  const [asking, setAsking] = useState(false);
  const dialog = useRef(null);
  useEffect(() => {
    if (asking) dialog.current?.showModal();
  }, [asking]);
  if (picture.me && !picture.keys) return html`<span class="who" title="This gateway asks for no keys on this machine">${picture.me.tenant}</span>`;
  if (picture.me) return html`<span class="who">${picture.me.tenant}</span><button onClick=${() => { setKey(null); connect(); }}>Sign out</button>`;
  const sign = (event) => {
    event.preventDefault();
    setKey(new FormData(event.currentTarget).get("key").trim());
    setAsking(false);
    connect();
  };
  return html`<button onClick=${() => setAsking(true)}>Sign in</button>
    ${asking && html`<dialog ref=${dialog} aria-labelledby="sign-in" onClose=${() => setAsking(false)}>
      <form onSubmit=${sign}>
        <h2 id="sign-in">Sign in</h2>
        <label for="key">API key of your tenant</label>
        <input id="key" name="key" type="password" autocomplete="off" required />
        <p class="hint">${hasKey() ? "The key that was given is not known here. " : ""}It stays in this tab, until that is closed.</p>
        <p><button class="primary">Sign in</button> <button type="button" onClick=${() => dialog.current.close()}>Cancel</button></p>
      </form>
    </dialog>`}`;
}

render(html`<${App} />`, document.getElementById("app"));
document.querySelector("#app > .loading")?.remove();
connect();
