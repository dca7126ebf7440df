// Keeps the pages of a node and of the leases up to date: loads the page every few seconds, and replaces the parts that have changed.

import { say, sayLive } from "./banner.js";
import { replacePart } from "./replace.js";

const EVERY = 2000;

function replace(page) {
  for (const fresh of page.querySelectorAll("[data-live]")) {
    const old = document.getElementById(fresh.id);
    if (!old || old.innerHTML === fresh.innerHTML) continue;
    replacePart(old, fresh);
  }
}

// This page with its filters, without the message about an action.
function address() {
  const url = new URL(location.href);
  url.searchParams.delete("done");
  url.searchParams.delete("ms");
  return url.pathname + url.search;
}

async function load() {
  if (document.hidden) return;
  if (document.getElementById("dialog").open || String(getSelection())) {
    sayLive(false, "paused");
    return;
  }
  try {
    const response = await fetch(address(), { signal: AbortSignal.timeout(6000) });
    if (response.redirected) {
      say("Your session has ended.", { href: `/login?next=${encodeURIComponent(location.pathname)}`, text: "Log in" });
      sayLive(false, "not live");
      return;
    }
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    if (response.ok) {
      replace(page);
      say("");
      sayLive(true, "live");
      return;
    }
    const why = page.querySelector("main .card p")?.textContent ?? `the server answered ${response.status}`;
    say(`This state is old: ${why}`);
  } catch {
    say("The server does not respond. This state is old; the page keeps trying.");
  }
  sayLive(false, "not live");
}

export function watchNode() {
  const again = async () => {
    await load();
    setTimeout(again, EVERY);
  };
  sayLive(true, "live"); // it was rendered just now
  setTimeout(again, EVERY);
}
