// Confirmations: opens a link to one in a dialog. Without JavaScript the link leads to a page that does the same.

const dialog = document.getElementById("dialog");

async function open(link) {
  let card = null;
  try {
    const response = await fetch(link.href, { signal: AbortSignal.timeout(5000) });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    if (response.ok && !response.redirected) card = page.querySelector("main .card");
  } catch {
    // Follow the link, so that the browser shows the error.
  }
  if (!card) {
    location.href = link.href;
    return;
  }
  const title = card.querySelector("h1");
  title.id = "dialog-title";
  card.querySelector("[data-back]")?.addEventListener("click", (event) => {
    event.preventDefault();
    dialog.close();
  });
  dialog.replaceChildren(card);
  dialog.addEventListener("close", () => link.isConnected ? link.focus() : document.getElementById(link.id)?.focus(), { once: true });
  dialog.showModal();
}

export function confirmInDialogs() {
  if (typeof dialog.showModal !== "function") return;
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-confirm]");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    open(link);
  });
}
