// The banner that says that the shown state is old. Screen readers read every change aloud, so it changes rarely.

const banner = document.getElementById("banner");
const live = document.getElementById("live");
let shown = banner.textContent.trim();

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function say(text, link) {
  document.body.classList.toggle("stale", Boolean(text));
  if (text === shown) return;
  shown = text;
  banner.replaceChildren();
  if (!text) return;
  const words = document.createElement("span");
  words.textContent = text;
  banner.append(icon("warn"), words);
  if (link) {
    const anchor = document.createElement("a");
    anchor.href = link.href;
    anchor.textContent = link.text;
    banner.append(anchor);
  }
}

export function sayLive(isLive, text) {
  if (!live) return;
  live.toggleAttribute("data-on", isLive);
  const words = live.querySelector(".text");
  if (words.textContent !== text) words.textContent = text;
}
