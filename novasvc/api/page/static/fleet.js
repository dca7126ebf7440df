// Keeps the page of the fleet up to date.

import { say, sayLive } from "./banner.js";
import { watchPicking } from "./picking.js";
import { replacePart } from "./replace.js";
import { Source } from "./source.js";
import { areOthersUp, setSquares, startMap } from "./map.js";
import { now, span } from "./time.js";

const ENTRIES = 100;
const count = new Intl.NumberFormat("en");

let frozen = false;
const loading = new Set();

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
  for (const age of document.querySelectorAll(".age")) {
    if (age.heard !== undefined) setText(age, span(now() - age.heard));
  }
}

function setAge([id, , , seconds]) {
  const age = document.querySelector(`#r${id} .beat .age`);
  if (!age) return;
  age.heard = now() - seconds;
  setText(age, span(seconds));
}

function setTotals(news) {
  for (const element of document.querySelectorAll("[data-total]")) {
    const number = news.totals[element.dataset.total];
    setText(element, count.format(number));
    element.closest("a").toggleAttribute("data-none", !number);
  }
  setText(document.getElementById("unit"), news.totals.services === 1 ? "service" : "services");
  const headline = document.getElementById("headline");
  setText(headline, news.headline);
  headline.toggleAttribute("data-fine", !news.wrong);
  document.title = `${news.headline} · novasvc`;
}

function setProblems(html) {
  const problems = document.getElementById("problems");
  const focused = problems.contains(document.activeElement) ? document.activeElement.getAttribute("href") : "";
  problems.innerHTML = html; // the server has escaped it
  noteAges(problems);
  if (focused) problems.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
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

// The services of the list, or of the map, have changed: the server draws it.
async function loadPart(id) {
  if (loading.has(id)) return;
  loading.add(id);
  try {
    const url = new URL(location.href);
    url.searchParams.set("part", id);
    // At this URL the server decides by Accept between the page and the list of API versions.
    const response = await fetch(url, { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(10000) });
    if (!response.ok || response.redirected) return;
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html").getElementById(id);
    const old = document.getElementById(id);
    if (!fresh) return;
    const picked = [...old.querySelectorAll("input:checked")].map((box) => box.id);
    replacePart(old, fresh);
    for (const box of picked) document.getElementById(box)?.toggleAttribute("checked", true);
    noteAges(fresh);
    if (id === "map") startMap();
    document.dispatchEvent(new Event("picked"));
  } catch {
    // The next update tries again.
  } finally {
    loading.delete(id);
  }
}

function takeNews(news) {
  for (const cell of news.cells) setAge(cell);
  setSquares(news.squares);
  setTotals(news);
  if (news.problems !== null) setProblems(news.problems);
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
  if (document.getElementById("services").dataset.layout !== news.layout) loadPart("services");
  const shape = document.getElementById("map").dataset.shape;
  if (shape !== news.shape || (news.whole && !areOthersUp(news.squares))) loadPart("map");
}

export function watchFleet() {
  const grid = document.getElementById("grid");
  noteAges(document);
  setInterval(tick, 1000);
  startMap();
  watchPicking();
  const list = document.getElementById("timeline");
  const source = new Source(grid.dataset.events, `${grid.dataset.since}-${list.dataset.entry}`, {
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
    for (const [name, value] of [...event.formData]) if (!value || (name === "sort" && value === "trouble")) event.formData.delete(name);
  });
  return source;
}
