// The map of the fleet: changes squares, and makes each group one stop of the Tab key, with arrow keys inside.

let squares = new Map();

function number(square) {
  return square.getAttribute("href").slice(3); // of "/s/12"
}

export function startMap() {
  squares = new Map();
  for (const group of document.querySelectorAll("#map .squares")) {
    const stop = group.contains(document.activeElement) ? document.activeElement : group.firstElementChild;
    for (const square of group.children) {
      squares.set(number(square), square);
      if (square !== stop) square.tabIndex = -1;
    }
    group.addEventListener("keydown", walk);
  }
}

function walk(event) {
  const square = event.target;
  const line = Math.max(1, Math.floor(square.parentElement.clientWidth / (square.offsetWidth + 2)));
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: line, ArrowUp: -line, Home: -Infinity, End: Infinity };
  const step = steps[event.key];
  if (step === undefined) return;
  event.preventDefault();
  const all = [...square.parentElement.children];
  const next = all[Math.min(all.length - 1, Math.max(0, all.indexOf(square) + step))];
  square.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

export function setSquares(changed) {
  for (const [id, code, title] of changed) {
    const square = squares.get(String(id));
    if (!square) continue;
    square.className = code;
    square.title = title;
  }
}

// Whether all squares are up but those of this list.
export function areOthersUp(told) {
  const ids = new Set(told.map(([id]) => String(id)));
  return [...squares].every(([id, square]) => !square.className || ids.has(id));
}
