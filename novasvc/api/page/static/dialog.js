// Confirmations: a link to one opens it here. The page that it leads to does the same without a script.

const dialog = document.getElementById("dialog");

async function open(link) {
  let card = null;
  try {
    const response = await fetch(link.href, { signal: AbortSignal.timeout(5000) });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    if (response.ok && !response.redirected) card = page.querySelector("main .card");
  } catch {
    // The browser says better what is wrong.
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
