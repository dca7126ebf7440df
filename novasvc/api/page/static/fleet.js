// Keeps the page of the fleet up to date.

import { say, sayLive } from "./banner.js";
import { Source } from "./source.js";
import { now, span } from "./time.js";

const ICONS = { "up": "up", "down": "down", "forced down": "forced" };
const ENTRIES = 100;
const count = new Intl.NumberFormat("en");

let frozen = false;
let source = null;
let loading = false;

function setText(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

// Ages are counted here; the server only sends the time since a heartbeat when one arrives.
function noteAges(root) {
  for (const age of root.querySelectorAll(".age[data-age]")) {
    age.heard = now() - Number(age.dataset.age);
    age.removeAttribute("data-age");
  }
}

function tick() {
  if (frozen) return;
  for (const age of document.querySelectorAll("#grid .age")) {
    if (age.heard !== undefined) setText(age, span(now() - age.heard));
  }
}

function setCell([id, state, disabled, seconds]) {
  const cell = document.getElementById(`s${id}`);
  if (!cell) return;
  if (cell.dataset.state !== state) {
    cell.dataset.state = state;
    cell.querySelector("use").setAttribute("href", `#i-${ICONS[state]}`);
    setText(cell.querySelector(".word"), state);
  }
  cell.toggleAttribute("data-disabled", disabled);
  const age = cell.querySelector(".age");
  age.heard = now() - seconds;
  setText(age, span(seconds));
}

function setTotals(totals) {
  for (const element of document.querySelectorAll("[data-total]")) {
    const number = totals[element.dataset.total];
    setText(element, count.format(number));
    element.closest("a").toggleAttribute("data-none", !number);
  }
  setText(document.getElementById("unit"), totals.services === 1 ? "service" : "services");
  const troubled = totals.down + totals.forced;
  document.title = `${troubled ? `${count.format(troubled)} down` : "All up"} · novasvc`;
}

function setEntries(news) {
  const list = document.getElementById("timeline");
  if (news.entry === Number(list.dataset.entry)) return;
  list.dataset.entry = news.entry;
  if (!news.entries) return;
  const template = document.createElement("template");
  template.innerHTML = news.entries; // the server has escaped it
  for (const item of template.content.querySelectorAll("li")) item.classList.add("fresh");
  list.prepend(template.content);
  while (list.children.length > ENTRIES) list.lastElementChild.remove();
  document.getElementById("quiet").classList.add("gone");
}

// Rows or columns have changed: the server renders the table.
async function loadGrid() {
  if (loading) return;
  loading = true;
  try {
    // At this URL the server decides by Accept between the page and the list of API versions.
    const headers = { Accept: "text/html" };
    const response = await fetch(location.href, { headers, signal: AbortSignal.timeout(10000) });
    if (!response.ok || response.redirected) return;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const fresh = page.getElementById("grid");
    const grid = document.getElementById("grid");
    if (!fresh) return;
    const focused = grid.contains(document.activeElement) ? document.activeElement : null;
    const scrolled = grid.querySelector(".scroll")?.scrollLeft ?? 0;
    grid.replaceWith(fresh);
    noteAges(fresh);
    const region = fresh.querySelector(".scroll");
    if (region) region.scrollLeft = scrolled;
    if (focused) ((focused.id && document.getElementById(focused.id)) || region)?.focus({ preventScroll: true });
  } catch {
    // The next update tries again.
  } finally {
    loading = false;
  }
}

function takeNews(news) {
  for (const cell of news.cells) setCell(cell);
  setTotals(news.totals);
  setEntries(news);
  frozen = Boolean(news.trouble);
  if (news.trouble) {
    // By the minute: screen readers would read a text that changes every second aloud every second.
    const old = news.old === null ? "" : news.old < 60 ? "This state is some seconds old: " : `This state is ${span(news.old)} old: `;
    say(`${old || "Nothing to show yet: "}${news.trouble}`);
    sayLive(false, "not live");
  } else {
    say("");
    sayLive(true, "live");
  }
  if (document.getElementById("grid").dataset.layout !== news.layout) loadGrid();
}

export function watchFleet() {
  const grid = document.getElementById("grid");
  noteAges(document);
  setInterval(tick, 1000);
  const list = document.getElementById("timeline");
  source = new Source(grid.dataset.events, `${grid.dataset.since}-${list.dataset.entry}`, {
    news: takeNews,
    lost() {
      frozen = true;
      say("The server does not respond. This state is old; the page keeps trying.");
      sayLive(false, "not live");
    },
    ended() {
      frozen = true;
      say("Your session has ended.", { href: `/login?next=${encodeURIComponent(location.pathname + location.search)}`, text: "Log in" });
      sayLive(false, "not live");
    },
  });
  // Apply a chosen filter at once; text is applied with Enter.
  for (const select of document.querySelectorAll(".filter select")) {
    select.addEventListener("change", () => select.form.requestSubmit());
  }
  // Leave default values out of the URL.
  document.querySelector(".filter").addEventListener("formdata", (event) => {
    for (const [name, value] of [...event.formData]) if (!value || (name === "sort" && value === "host")) event.formData.delete(name);
  });
  return source;
}
