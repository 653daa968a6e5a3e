// Submit a task: a form made from the capability's contract.

import { html, useState } from "./vendor/htm-preact.js";
import { get, post } from "./api.js";
import { count } from "./format.js";
import { picture } from "./live.js";
import { Empty, Note, link, useFetched } from "./parts.js";

const STRATEGIES = ["auction", "auto", "spot", "race", "panel", "cascade"];

export function Submit() {
  const { value: contracts, error } = useFetched(() => get("console/api/contracts"), [picture.me]);
  const [chosen, setChosen] = useState(null);
  if (!picture.me) return html`<div class="page"><h1>Submit</h1><${Empty} title="Sign in to submit tasks"><p>With the key of your tenant.</p><//></div>`;
  if (error) return html`<div class="page"><h1>Submit</h1><${Empty} title=${error.message} /></div>`;
  if (!contracts) return html`<div class="page"><h1>Submit</h1><p class="quiet">Reading the contracts…</p></div>`;
  if (!contracts.length) return html`<div class="page"><h1>Submit</h1><${Empty} title="No capability is known yet"><p>A worker announces what it can do: <code>modelnet work FILE</code>.</p><//></div>`;
  const sorted = contracts.slice().sort((a, b) => (b.workers > 0) - (a.workers > 0) || a.capability.localeCompare(b.capability));
  const contract = sorted.find((one) => one.contract + one.capability === chosen) || sorted[0];
  return html`<div class="page">
    <h1>Submit</h1>
    <div class="ask">
      <label for="capability">Capability</label>
      <select id="capability" value=${contract.contract + contract.capability} onChange=${(event) => setChosen(event.currentTarget.value)}>
        ${sorted.map((one) => html`<option key=${one.contract + one.capability} value=${one.contract + one.capability} selected=${one === contract}>${one.capability} (${one.workers ? count(one.workers, "worker") : "nobody now"})</option>`)}
      </select>
      ${contract.description && html`<p class="hint">${contract.description}</p>`}
      <${Form} key=${contract.contract + contract.capability} contract=${contract} />
    </div>
  </div>`;
}

function Form({ contract }) {
  const prefix = contract.capability.endsWith(">");
  const [value, setValue] = useState(() => initial(contract.input));
  const [text, setText] = useState(null); // the input as JSON, once that is asked for
  const [options, setOptions] = useState({ capability: contract.capability.replace(/>$/, ""), budget: "1000", deadline_s: "60", strategy: "auction" });
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const option = (name) => (event) => setOptions({ ...options, [name]: event.currentTarget.value });

  const send = async (event) => {
    event.preventDefault();
    setProblem(null);
    let input = value;
    if (text !== null) {
      try {
        input = JSON.parse(text);
      } catch (error) {
        setProblem(`The input is no JSON: ${error.message}`);
        return;
      }
    }
    setBusy(true);
    try {
      const done = await post("console/api/tasks", { capability: options.capability, input: clean(input), budget: Number(options.budget), deadline_s: Number(options.deadline_s), strategy: options.strategy });
      location.hash = link.task(done.tenant, done.task);
    } catch (error) {
      setProblem(error.message);
      setBusy(false);
    }
  };

  return html`<form onSubmit=${send}>
    ${prefix && html`<label for="exact">Exactly which</label><input id="exact" required value=${options.capability} onInput=${option("capability")} />`}
    ${text === null ? html`<${Fields} schema=${contract.input} root=${contract.input} value=${value} set=${setValue} path="input" />` : html`<label for="json">Input as JSON</label><textarea id="json" class="code" rows="8" spellcheck="false" value=${text} onInput=${(event) => setText(event.currentTarget.value)}></textarea>`}
    <p><button type="button" class="plain" onClick=${() => setText(text === null ? JSON.stringify(clean(value), null, 2) : null)}>${text === null ? "Write it as JSON" : "Back to the form"}</button></p>
    <fieldset class="terms"><legend>Terms</legend>
      <div><label for="budget">Budget</label><input id="budget" type="number" min="0" step="1" required value=${options.budget} onInput=${option("budget")} /><p class="hint">micro-credits</p></div>
      <div><label for="deadline">Deadline</label><input id="deadline" type="number" min="0.1" max="86400" step="any" required value=${options.deadline_s} onInput=${option("deadline_s")} /><p class="hint">seconds</p></div>
      <div><label for="strategy">Strategy</label><select id="strategy" value=${options.strategy} onChange=${option("strategy")}>${STRATEGIES.map((name) => html`<option key=${name} value=${name} selected=${name === options.strategy}>${name}</option>`)}</select></div>
    </fieldset>
    ${problem && html`<div role="alert"><${Note} kind="bad">${problem}<//></div>`}
    <p><button class="primary" disabled=${busy}>${busy ? "Submitting…" : "Submit the task"}</button></p>
  </form>`;
}

/** The fields of an object's schema. */
function Fields({ schema, root, value, set, path }) {
  const properties = Object.entries(resolve(schema, root).properties || {});
  const required = new Set(resolve(schema, root).required || []);
  if (!properties.length) return html`<p class="hint">The contract names no fields: write the input as JSON.</p>`;
  return properties.map(([name, one]) => html`<${Field} key=${name} name=${name} schema=${resolve(one, root)} root=${root} required=${required.has(name)} value=${value?.[name]} set=${(next) => set({ ...value, [name]: next })} path=${`${path}-${name}`} />`);
}

function Field({ name, schema, root, required, value, set, path }) {
  const type = Array.isArray(schema.type) ? schema.type.find((one) => one !== "null") : schema.type;
  const hint = [schema.description, !required && "optional"].filter(Boolean).join(" · ");
  const label = html`<label for=${path}>${schema.title || name}</label>`;
  const foot = hint && html`<p class="hint" id="${path}-hint">${hint}</p>`;
  const shared = { id: path, required, "aria-describedby": hint ? `${path}-hint` : undefined };
  if (schema.enum) {
    return html`<div>${label}<select ...${shared} value=${value === undefined ? "" : JSON.stringify(value)} onChange=${(event) => set(event.currentTarget.value === "" ? undefined : JSON.parse(event.currentTarget.value))}>${!required && html`<option value="">–</option>`}${schema.enum.map((one) => html`<option key=${one} value=${JSON.stringify(one)} selected=${one === value}>${String(one)}</option>`)}</select>${foot}</div>`;
  }
  if (type === "boolean") {
    return html`<div class="check"><input ...${shared} required=${false} type="checkbox" checked=${value === true} onChange=${(event) => set(event.currentTarget.checked)} />${label}${foot}</div>`;
  }
  if (type === "integer" || type === "number") {
    return html`<div>${label}<input ...${shared} type="number" step=${type === "integer" ? 1 : "any"} min=${schema.minimum} max=${schema.maximum} value=${value ?? ""} onInput=${(event) => set(event.currentTarget.value === "" ? undefined : Number(event.currentTarget.value))} />${foot}</div>`;
  }
  if (type === "object" && schema.properties) {
    return html`<fieldset><legend>${schema.title || name}</legend><${Fields} schema=${schema} root=${root} value=${value || {}} set=${set} path=${path} />${foot}</fieldset>`;
  }
  const items = resolve(schema.items || {}, root);
  if (type === "array" && items.type === "string") {
    return html`<div>${label}<textarea ...${shared} rows="3" value=${(value || []).join("\n")} onInput=${(event) => set(event.currentTarget.value === "" ? undefined : event.currentTarget.value.split("\n"))}></textarea><p class="hint" id="${path}-hint">One a line${hint && ` · ${hint}`}</p></div>`;
  }
  if (type === "string") {
    const single = schema.maxLength !== undefined && schema.maxLength <= 80;
    const input = { ...shared, minlength: schema.minLength, maxlength: schema.maxLength, value: value ?? "", onInput: (event) => set(event.currentTarget.value === "" && !required ? undefined : event.currentTarget.value) };
    return html`<div>${label}${single ? html`<input ...${input} />` : html`<textarea ...${input} rows="4"></textarea>`}${foot}</div>`;
  }
  return html`<${Raw} label=${label} foot=${foot} shared=${shared} value=${value} set=${set} />`;
}

/** What no field fits: as JSON. */
function Raw({ label, foot, shared, value, set }) {
  const [text, setText] = useState(value === undefined ? "" : JSON.stringify(value));
  const [wrong, setWrong] = useState(false);
  const read = (event) => {
    setText(event.currentTarget.value);
    try {
      set(event.currentTarget.value === "" ? undefined : JSON.parse(event.currentTarget.value));
      setWrong(false);
      event.currentTarget.setCustomValidity("");
    } catch {
      setWrong(true);
      event.currentTarget.setCustomValidity("This is no JSON");
    }
  };
  return html`<div>${label}<textarea ...${shared} class="code" rows="3" spellcheck="false" aria-invalid=${wrong} value=${text} onInput=${read}></textarea>${foot}${wrong && html`<p class="hint bad">No JSON yet</p>`}</div>`;
}

function resolve(schema, root) {
  const seen = new Set();
  let found = schema || {};
  while (found.$ref?.startsWith("#/") && !seen.has(found.$ref)) {
    seen.add(found.$ref);
    found = found.$ref.slice(2).split("/").reduce((at, step) => at?.[step.replaceAll("~1", "/").replaceAll("~0", "~")], root) || {};
  }
  const one = found.anyOf || found.oneOf;
  if (one && !found.type && !found.properties) {
    const options = one.filter((option) => option.type !== "null");
    if (options.length === 1) return { ...found, ...options[0], anyOf: undefined, oneOf: undefined };
  }
  return found;
}

function initial(schema, depth = 0) {
  const value = {};
  const required = new Set(schema?.required || []);
  for (const [name, given] of Object.entries(resolve(schema, schema).properties || {})) {
    const one = resolve(given, schema);
    if (one.default !== undefined) value[name] = one.default;
    else if (one.enum && required.has(name)) value[name] = one.enum[0];
    else if (one.type === "boolean" && required.has(name)) value[name] = false;
    else if (one.type === "object" && one.properties && depth < 4) value[name] = initial({ ...one, $defs: schema.$defs }, depth + 1);
  }
  return value;
}

/** Without what was left out. */
function clean(value) {
  if (Array.isArray(value) || value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).filter(([, one]) => one !== undefined).map(([name, one]) => [name, clean(one)]));
}
