// Numbers and times as text: aligned, short, and the same everywhere.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** A count or a rate; an en dash for what is not known. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  return value >= 100 || Number.isInteger(value) ? whole.format(value) : tenth.format(value);
}

/** Milliseconds, in the unit that fits. */
export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return "<1 ms";
  if (ms < 1000) return `${whole.format(ms)} ms`;
  if (ms < 60000) return `${tenth.format(ms / 1000)} s`;
  return `${whole.format(ms / 60000)} min`;
}

/** A share of 1 with two digits. */
export function share(value) {
  return value === null || value === undefined ? "–" : value.toFixed(2);
}

/** The time of day of seconds since the epoch. */
export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB");
}

/** Date and time. */
export function moment(seconds) {
  const at = new Date(seconds * 1000);
  return `${at.toLocaleDateString("en-CA")} ${at.toLocaleTimeString("en-GB")}`;
}

/** The end of an id: they begin with the time, so it is their end that differs. */
export function short(id) {
  return id.length > 14 ? `…${id.slice(-8)}` : id;
}

/** "1 worker", "2 workers". */
export function count(n, noun) {
  return `${number(n)} ${noun}${n === 1 ? "" : "s"}`;
}
