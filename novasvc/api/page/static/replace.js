// Replaces a part of the page, without moving the focus or what the reader has scrolled.

export function replacePart(old, fresh) {
  const active = old.contains(document.activeElement) ? document.activeElement : null;
  const scrolled = [...old.querySelectorAll(".scroll")].map((box) => [box.id, box.scrollLeft, box.scrollTop]);
  old.replaceWith(fresh);
  for (const [id, left, top] of scrolled) document.getElementById(id)?.scrollTo({ left, top, behavior: "instant" });
  if (!active) return;
  const href = active.getAttribute("href") ?? "";
  const same = active.id ? document.getElementById(active.id) : fresh.querySelector(`a[href="${CSS.escape(href)}"]`);
  same?.focus({ preventScroll: true });
}
